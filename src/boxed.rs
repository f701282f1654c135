//! Futures in boxes.

use std::pin::Pin;

/// What is made, in a box and where it stays: `Box::pin(future)` makes it elsewhere first and copies all of it, which is
/// several KiB for most futures, nearly all of them without meaning as long as it has not begun. Five such copies a miss took
/// 25 KiB of writes to cold memory.
#[inline(always)]
pub fn pinned<T>(make: impl FnOnce() -> T) -> Pin<Box<T>> {
    let place = Box::new_uninit();
    Box::into_pin(Box::write(place, make()))
}
