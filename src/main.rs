//! The program: it runs what the command line says.

/// A miss has some ninety allocations, many of them of several KiB, which the C library's allocator searches its lists for:
/// this one takes a fifth off a miss and a tenth off hits over many responses, and adds six per cent of memory. With huge pages
/// those hits would lose another tenth, and idle connections take half as much again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    aside::cli::run()
}
