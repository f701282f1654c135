//! Compresses bodies for Redis with LZ4 or zstd, and restores them within the length that was declared for them.

use std::cell::RefCell;
use std::io;
use std::thread::LocalKey;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use lz4_flex::block::{self as lz4, CompressTable};
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe;

use super::Unreadable;
use super::read::Reader;
use super::write::Writer;
use crate::fields::list;
use crate::stored::{StoredFields, StoredResponse};

/// A smaller body is stored as it is: what it could save is not worth the work.
const BODY_MIN: usize = 1 << 10;
/// On generated JSON, in a release build, level 1 takes 0.56 ms for 256 KiB and makes them 2.7 times smaller; level 3
/// takes 0.87 ms, and makes them 2.8 times smaller.
const LEVEL: i32 = 1;
/// Below this length LZ4 compresses, for there the work is a large part of a miss, and of a hit in Redis, and what is saved the
/// smaller part of a record: of 1 KiB of JSON rows it leaves 0.46 (zstd's level -1: 0.41, level 1: 0.34), and a miss takes 164,000
/// instructions (176,000; 196,000), a hit in Redis 80,000 (92,000; 104,000). It codes only what is there more than once: text of
/// few symbols, such as hexadecimal digits, stays as it is.
const SHORT: usize = 2 << 10;
const BLOCK_MAX: usize = lz4::get_maximum_output_size(SHORT);
/// What must be saved of a body: one part in so many.
const SAVED_MIN: usize = 10;
/// The block that is tried first, and the length of body from which on it is: then it costs at most a quarter more.
const FIRST_BLOCK: usize = 64 << 10;
const FIRST_BLOCK_FROM: usize = 4 * FIRST_BLOCK;
/// What a frame begins with (RFC 8878 §3.1.1).
const FRAME_MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
/// The types, beside images, audio and video, whose content is compressed already.
const COMPRESSED_TYPES: &[&str] = &[
    "application/gzip",
    "application/pdf",
    "application/vnd.rar",
    "application/x-7z-compressed",
    "application/x-gzip",
    "application/zip",
    "application/zstd",
    "font/woff",
    "font/woff2",
];

thread_local! {
    /// The thread's own, made once: one of them is 160 KiB, and to make it anew for each body took as long as to restore
    /// 1 KiB with it.
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
    /// The thread's own, made once: to make and to clear one for each body took as many instructions as to compress 1 KiB
    /// with it (17,000 of 30,000), and pages that the kernel cleared anew each time.
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    /// The thread's own, made once: LZ4's table of 8 KiB, and room for whatever a short body's block takes.
    static BLOCK: RefCell<(CompressTable, [u8; BLOCK_MAX])> = RefCell::new((CompressTable::small(), [0; BLOCK_MAX]));
}

/// How a stored body is coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// As it was received.
    Identity,
    /// As one LZ4 block.
    Lz4 {
        /// The length of what was received, in bytes.
        length: u64,
    },
    /// As one zstd frame.
    Zstd {
        /// The length of what was received, in bytes.
        length: u64,
    },
}

impl Coding {
    pub(super) fn write(self, out: &mut Writer) {
        let (kind, length) = match self {
            Self::Identity => return out.u8(0),
            Self::Zstd { length } => (1, length),
            Self::Lz4 { length } => (2, length),
        };
        out.u8(kind);
        out.u64(length);
    }

    pub(super) fn read(input: &mut Reader<'_>) -> Result<Self, Unreadable> {
        match input.u8()? {
            0 => Ok(Self::Identity),
            1 => Ok(Self::Zstd { length: input.u64()? }),
            2 => Ok(Self::Lz4 { length: input.u64()? }),
            _ => Err(Unreadable::Malformed),
        }
    }
}

/// A body as Redis holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBody {
    /// What is stored.
    pub bytes: Bytes,
    /// How it is coded.
    pub coding: Coding,
}

impl StoredBody {
    /// The body as it is.
    pub const fn identity(body: Bytes) -> Self {
        Self { bytes: body, coding: Coding::Identity }
    }

    /// The body compressed, or as it is where that does not save enough.
    pub fn compressed(body: Bytes) -> Self {
        let length = body.len() as u64;
        let (compressed, coding) = if body.len() < SHORT {
            (block(&body), Coding::Lz4 { length })
        } else {
            (compress(&body), Coding::Zstd { length })
        };
        match compressed {
            Some(bytes) => Self { bytes: bytes.into(), coding },
            None => Self::identity(body),
        }
    }

    /// The body that was received. Nothing is allocated beyond the length declared, and a block or frame that yields any
    /// other is refused.
    pub fn restored(self) -> Result<Bytes, Unreadable> {
        match self.coding {
            Coding::Identity => Ok(self.bytes),
            Coding::Lz4 { length } => decompress_block(&self.bytes, length),
            Coding::Zstd { length } => decompress(&self.bytes, length),
        }
    }
}

/// Whether a response's body may get smaller: it is no trifle, and not compressed already.
pub fn may_shrink(response: &StoredResponse) -> bool {
    response.body.len() >= BODY_MIN && !is_compressed(&response.fields)
}

fn is_compressed(fields: &StoredFields) -> bool {
    let mut codings = fields.get_all(&CONTENT_ENCODING).flat_map(|line| list::members(line.as_bytes()));
    codings.any(|coding| !coding.eq_ignore_ascii_case(b"identity"))
        || fields.get(&CONTENT_TYPE).is_some_and(|value| is_compressed_type(value.as_bytes()))
}

fn is_compressed_type(value: &[u8]) -> bool {
    let essence = list::split(value, b';').next().unwrap_or_default().trim_ascii().to_ascii_lowercase();
    let begins = |kind: &str| essence.starts_with(kind.as_bytes());
    begins("audio/")
        || begins("video/")
        || (begins("image/") && essence != b"image/svg+xml")
        || COMPRESSED_TYPES.iter().any(|known| essence == known.as_bytes())
}

/// A short body as an LZ4 block; none where that does not save enough.
fn block(body: &[u8]) -> Option<Vec<u8>> {
    BLOCK.with_borrow_mut(|(table, room)| {
        let length = lz4::compress_into_with_table(body, room, table).ok()?;
        (length <= body.len() - body.len() / SAVED_MIN).then(|| room[..length].to_vec())
    })
}

/// The body as a frame; none where that does not save enough.
fn compress(body: &[u8]) -> Option<Vec<u8>> {
    if body.len() >= FIRST_BLOCK_FROM {
        frame(&body[..FIRST_BLOCK])?;
    }
    let mut frame = frame(body)?;
    frame.shrink_to_fit();
    Some(frame)
}

/// A frame that states its content's length; none where it does not fit into what it may take.
fn frame(content: &[u8]) -> Option<Vec<u8>> {
    let mut frame = Vec::with_capacity(content.len() - content.len() / SAVED_MIN);
    with_kept(&COMPRESSOR, || Compressor::new(LEVEL), |zstd| zstd.compress_to_buffer(content, &mut frame)).ok()?;
    Some(frame)
}

/// The content of exactly one frame that states this length and yields it.
fn decompress(frame: &[u8], length: u64) -> Result<Bytes, Unreadable> {
    let is_alone = zstd_safe::find_frame_compressed_size(frame).is_ok_and(|size| size == frame.len());
    let states = zstd_safe::get_frame_content_size(frame).is_ok_and(|stated| stated == Some(length));
    if !(frame.starts_with(&FRAME_MAGIC) && is_alone && states) {
        return Err(Unreadable::Malformed);
    }
    let (length, mut body) = room_for(length)?;
    let decompressed = with_kept(&DECOMPRESSOR, Decompressor::new, |zstd| zstd.decompress_to_buffer(frame, &mut body));
    if decompressed.is_ok_and(|yielded| yielded == length) { Ok(body.into()) } else { Err(Unreadable::Malformed) }
}

/// The content of a block that yields this length: that of a short body, for there are no others.
fn decompress_block(block: &[u8], length: u64) -> Result<Bytes, Unreadable> {
    if length >= SHORT as u64 {
        return Err(Unreadable::Malformed);
    }
    let (length, mut body) = room_for(length)?;
    body.resize(length, 0);
    let decompressed = lz4::decompress_into(block, &mut body);
    if decompressed.is_ok_and(|yielded| yielded == length) { Ok(body.into()) } else { Err(Unreadable::Malformed) }
}

fn room_for(length: u64) -> Result<(usize, Vec<u8>), Unreadable> {
    let length = usize::try_from(length).map_err(|_| Unreadable::Malformed)?;
    let mut room = Vec::new();
    room.try_reserve_exact(length).map_err(|_| Unreadable::Malformed)?;
    Ok((length, room))
}

/// Works with what the thread keeps, which is made at its first use.
fn with_kept<K, T>(
    kept: &'static LocalKey<RefCell<Option<K>>>,
    make: impl FnOnce() -> io::Result<K>,
    work: impl FnOnce(&mut K) -> io::Result<T>,
) -> io::Result<T> {
    kept.with_borrow_mut(|kept| {
        let kept = match kept {
            Some(kept) => kept,
            None => kept.insert(make()?),
        };
        work(kept)
    })
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    /// Digits and letters drawn at random: a frame takes about three quarters of them.
    fn letters(random: &mut fastrand::Rng, length: usize) -> Vec<u8> {
        (0..length).map(|_| random.alphanumeric() as u8).collect()
    }

    fn noise(random: &mut fastrand::Rng, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        random.fill(&mut bytes);
        bytes
    }

    #[test]
    fn what_saves_a_tenth_is_compressed_and_comes_back_as_it_was() {
        let mut random = fastrand::Rng::with_seed(1);
        for length in [BODY_MIN, 1025, SHORT - 1, SHORT, 65_535, FIRST_BLOCK, FIRST_BLOCK_FROM, (1 << 20) + 7] {
            // In a short body only what repeats something is coded.
            let coded =
                if length < SHORT { letters(&mut random, 100).repeat(50) } else { letters(&mut random, length) };
            for body in [coded[..length].to_vec(), vec![b'a'; length]] {
                let body = Bytes::from(body);
                let stored = StoredBody::compressed(body.clone());
                let declared = length as u64;
                let expected =
                    if length < SHORT { Coding::Lz4 { length: declared } } else { Coding::Zstd { length: declared } };
                assert_eq!(stored.coding, expected);
                assert!(stored.bytes.len() <= length - length / 10, "{} of {length}", stored.bytes.len());
                assert!(stored.restored() == Ok(body), "{length}");
            }
            let incompressible = if length < SHORT { letters(&mut random, length) } else { noise(&mut random, length) };
            let body = Bytes::from(incompressible);
            assert!(StoredBody::compressed(body.clone()) == StoredBody::identity(body), "{length}");
        }
    }

    #[test]
    fn a_block_that_saves_less_than_a_tenth_is_not_kept() {
        let mut random = fastrand::Rng::with_seed(3);
        let mut repeating = |repeated: usize| {
            let once = letters(&mut random, 1500 - repeated);
            [&once[..], &once[..repeated]].concat()
        };
        assert!(block(&repeating(100)).is_none());
        assert!(block(&repeating(200)).is_some());
    }

    #[test]
    fn a_first_block_that_does_not_shrink_ends_the_attempt() {
        let mut random = fastrand::Rng::with_seed(2);
        let body = [noise(&mut random, FIRST_BLOCK), vec![0; FIRST_BLOCK_FROM - FIRST_BLOCK]].concat();
        assert!(compress(&body).is_none());
        assert!(compress(&body[..body.len() - 1]).is_some(), "a shorter body is tried as a whole");
    }

    #[test]
    fn what_is_compressed_already_is_left_alone() {
        let check = |name: &'static str, value: &'static str, expected: bool| {
            let fields = [(HeaderName::from_static(name), HeaderValue::from_static(value))].into_iter().collect();
            assert_eq!(is_compressed(&fields), expected, "{name}: {value}");
        };
        check("content-encoding", "gzip", true);
        check("content-encoding", "identity, br", true);
        check("content-encoding", "Identity", false);
        check("content-encoding", "", false);
        check("content-type", "application/json; charset=utf-8", false);
        check("content-type", "application/octet-stream", false);
        check("content-type", "text/html", false);
        check("content-type", "image/svg+xml;charset=utf-8", false);
        check("content-type", "Image/PNG", true);
        check("content-type", "video/mp4; codecs=\"a;b\"", true);
        check("content-type", "audio/ogg", true);
        check("content-type", "application/zip", true);
        check("content-type", "application/zip2", false);
        check("x-other", "gzip", false);
        assert!(!is_compressed(&StoredFields::default()));
        let two = ["identity", "gzip"].map(|value| (CONTENT_ENCODING, HeaderValue::from_static(value)));
        assert!(is_compressed(&two.into_iter().collect()), "any line counts");
    }

    #[test]
    fn a_frame_that_yields_another_length_than_declared_is_refused() {
        let body = vec![b'a'; 100_000];
        let frame = compress(&body).unwrap();
        let check = |frame: &[u8], length: u64| assert_eq!(decompress(frame, length), Err(Unreadable::Malformed));
        check(&frame, 99_999);
        check(&frame, 100_001);
        check(&frame, 0);
        check(&frame, u64::MAX);
        check(&frame[..frame.len() - 1], 100_000);
        check(&[&frame[..], b"\0"].concat(), 100_000);
        check(&[&frame[..], &frame].concat(), 200_000);
        check(&[&frame[..], b"\x50\x2a\x4d\x18\0\0\0\0"].concat(), 100_000);
        check(&body, 100_000);
        check(b"", 0);
        // Skippable, of another version, and without its content's length (RFC 8878 §3.1.1.1.1, §3.1.2).
        check(b"\x50\x2a\x4d\x18\0\0\0\0", 0);
        check(b"\x27\xb5\x2f\xfd\0\0\0\0\0\0", 0);
        check(&zstd::stream::encode_all(&body[..], LEVEL).unwrap(), 100_000);
        assert_eq!(decompress(&frame, 100_000), Ok(body.into()));
    }

    /// A frame of `blocks` blocks of one repeated byte each, stating `length`: 4 bytes that yield 128 KiB.
    fn bomb(blocks: usize, length: u64) -> Vec<u8> {
        // One segment off, a window of 128 KiB, and 8 bytes of content size (RFC 8878 §3.1.1.1).
        let mut frame = [&FRAME_MAGIC[..], &[0b1100_0000, 7 << 3], &length.to_le_bytes()].concat();
        for nth in 1..=blocks {
            let header = (128_u32 << 10) << 3 | 1 << 1 | u32::from(nth == blocks);
            frame.extend_from_slice(&header.to_le_bytes()[..3]);
            frame.push(0);
        }
        frame
    }

    #[test]
    fn a_bomb_yields_what_was_declared_or_nothing() {
        let block = 128 << 10;
        assert_eq!(decompress(&bomb(3, 3 * block), 3 * block).map(|body| body.len() as u64), Ok(3 * block));
        // It states less than it has, and more: neither fills a buffer beyond what is declared.
        assert_eq!(decompress(&bomb(4096, block), block), Err(Unreadable::Malformed));
        assert_eq!(decompress(&bomb(1, 3 * block), 3 * block), Err(Unreadable::Malformed));
        // A length that cannot be had is refused before it is asked of the allocator.
        assert_eq!(decompress(&bomb(1, u64::MAX - 2), u64::MAX - 2), Err(Unreadable::Malformed));
        assert_eq!(decompress(&bomb(1, 1 << 62), 1 << 62), Err(Unreadable::Malformed));
    }

    #[test]
    fn a_block_that_yields_another_length_than_declared_is_refused() {
        let body = b"{\"id\":1},".repeat(150);
        let block = block(&body).unwrap();
        let length = body.len() as u64;
        let check = |block: &[u8], length: u64| assert_eq!(decompress_block(block, length), Err(Unreadable::Malformed));
        check(&block, length - 1);
        check(&block, length + 1);
        check(&block, 0);
        check(&block, u64::MAX);
        check(&block, 1 << 62);
        check(&block[..block.len() - 1], length);
        check(&[&block[..], b"\0"].concat(), length + 1);
        check(&[&block[..], &block].concat(), length);
        check(b"", 0);
        check(b"", length);
        // Four literals, then a match that begins before them and would go on for 255 bytes each.
        check(&[&b"\x4fabcd\x05\0"[..], &[255; 4000], b"\0"].concat(), length);
        assert_eq!(decompress_block(&block, length), Ok(body.into()));
        let longest = lz4::compress(&[b'a'; SHORT]);
        check(&longest, SHORT as u64);
        assert!(decompress_block(&lz4::compress(&[b'a'; SHORT - 1]), SHORT as u64 - 1).is_ok());
    }

    /// Blocks with some bytes changed, cut or added, and random ones: none panics, and what they yield is as long as declared.
    #[test]
    fn a_hostile_block_never_yields_another_length() {
        let mut random = fastrand::Rng::with_seed(5);
        let bodies = [letters(&mut random, 150).repeat(9), vec![b'a'; SHORT - 1]];
        let blocks = bodies.map(|body| (block(&body).unwrap(), body.len() as u64));
        let (mut restored, mut refused) = (0, 0);
        for round in 0..50_000 {
            let (block, length) = &blocks[round % 2];
            let mut hostile = block.clone();
            if round % 5 == 0 {
                let length = random.usize(..100);
                hostile = noise(&mut random, length);
            } else {
                for _ in 0..random.usize(1..4) {
                    let at = random.usize(..hostile.len());
                    hostile[at] = random.u8(..);
                }
                if random.u8(..4) == 0 {
                    hostile.truncate(random.usize(..=hostile.len()));
                }
            }
            match decompress_block(&hostile, *length) {
                Ok(body) => {
                    assert_eq!(body.len() as u64, *length);
                    restored += 1;
                }
                Err(why) => {
                    assert_eq!(why, Unreadable::Malformed);
                    refused += 1;
                }
            }
        }
        assert!(restored > 0 && refused > 0, "{restored} restored, {refused} refused");
    }

    /// Random bytes behind a frame's magic, and frames with some bytes changed, cut or added: each is refused, or is
    /// a frame of exactly the length declared.
    #[test]
    fn a_hostile_frame_never_yields_another_length() {
        let mut random = fastrand::Rng::with_seed(4);
        let bodies = [letters(&mut random, 5_000), vec![0; 300_000]];
        let frames = bodies.map(|body| (compress(&body).unwrap(), body.len() as u64));
        let (mut restored, mut refused) = (0, 0);
        for round in 0..20_000 {
            let (frame, length) = &frames[round % 2];
            let mut hostile = frame.clone();
            if round % 5 == 0 {
                let length = random.usize(..100);
                hostile = [&FRAME_MAGIC[..], &noise(&mut random, length)].concat();
            } else {
                for _ in 0..random.usize(1..4) {
                    let at = random.usize(..hostile.len());
                    hostile[at] = random.u8(..);
                }
                if random.u8(..4) == 0 {
                    hostile.truncate(random.usize(..=hostile.len()));
                }
            }
            let stated = zstd_safe::get_frame_content_size(&hostile).ok().flatten();
            let declared = stated.filter(|stated| *stated <= 1 << 20 && round % 3 == 0).unwrap_or(*length);
            match decompress(&hostile, declared) {
                Ok(body) => {
                    assert_eq!(body.len() as u64, declared);
                    restored += 1;
                }
                Err(why) => {
                    assert_eq!(why, Unreadable::Malformed);
                    refused += 1;
                }
            }
        }
        assert!(restored > 0 && refused > 0, "{restored} restored, {refused} refused");
    }
}
