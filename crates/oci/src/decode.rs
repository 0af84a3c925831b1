//! A layer's or archive's bytes: undo gzip or zstd, hash and count what comes out, refuse
//! what grows past its bounds. Flat memory whatever the size. Knows no tar and no files.
//!
//! The compression is told by the first bytes, not by the media type: `docker save` names
//! none, and the DiffID proves the result either way.

use std::cell::Cell;
use std::io::{self, BufReader, Read};
use std::rc::Rc;

use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::error::LayerFault;
use crate::limits::Limits;
use crate::spec::media_type;

const BUFFER_BYTES: usize = 256 << 10;
/// Enough to tell every packing that we know, or know of.
const MAGIC_BYTES: u64 = 10;
/// Largest window that a zstd stream may ask for: 128 MiB, the bound of the reference tool.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// How bytes are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    fn sniff(head: &[u8]) -> Result<Self, LayerFault> {
        Ok(match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A zstd frame, or a skippable frame before one (seekable zstd writes those).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => return Err(LayerFault::Packing("xz")),
            // With the mark of a first block: a tar's first name may begin with `BZh`.
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..] => {
                return Err(LayerFault::Packing("bzip2"));
            }
            [0x04, 0x22, 0x4d, 0x18, ..] => return Err(LayerFault::Packing("lz4")),
            _ => Self::Plain,
        })
    }

    pub(crate) fn layer_media_type(self) -> &'static str {
        match self {
            Self::Plain => media_type::LAYER,
            Self::Gzip => media_type::LAYER_GZIP,
            Self::Zstd => media_type::LAYER_ZSTD,
        }
    }
}

/// How much may come out of a stream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub max_bytes: u64,
    pub max_bytes_name: &'static str,
    pub max_ratio: u64,
    pub ratio_free_bytes: u64,
}

impl Bounds {
    pub(crate) fn layer(limits: &Limits) -> Self {
        Self {
            max_bytes: limits.max_layer_bytes,
            max_bytes_name: "max_layer_bytes",
            max_ratio: limits.max_ratio,
            ratio_free_bytes: limits.ratio_free_bytes,
        }
    }

    pub(crate) fn archive(limits: &Limits) -> Self {
        Self { max_bytes: limits.max_archive_bytes, max_bytes_name: "max_archive_bytes", ..Self::layer(limits) }
    }
}

enum Inner<R: Read> {
    Plain(R),
    Gzip(Box<flate2::bufread::MultiGzDecoder<R>>),
    Zstd(Box<zstd::Decoder<'static, R>>),
}

/// The first bytes, read to tell the packing, then the rest.
type Source<R> = BufReader<Counted<io::Chain<io::Cursor<Vec<u8>>, R>>>;

/// The unpacked stream.
pub(crate) struct Decoded<R: Read> {
    inner: Inner<Source<R>>,
    packing: Packing,
    hash: Sha256,
    in_bytes: Rc<Cell<u64>>,
    out_bytes: u64,
    bounds: Bounds,
}

impl<R: Read> Decoded<R> {
    pub(crate) fn new(mut raw: R, bounds: Bounds) -> Result<Self, LayerFault> {
        let mut head = Vec::new();
        raw.by_ref().take(MAGIC_BYTES).read_to_end(&mut head).map_err(LayerFault::from_read)?;
        let packing = Packing::sniff(&head)?;
        let in_bytes = Rc::new(Cell::new(0));
        let counted = Counted { inner: io::Cursor::new(head).chain(raw), count: in_bytes.clone() };
        let source = BufReader::with_capacity(BUFFER_BYTES, counted);
        let inner = match packing {
            Packing::Plain => Inner::Plain(source),
            Packing::Gzip => Inner::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(source))),
            Packing::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(source).map_err(LayerFault::Compression)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(LayerFault::Compression)?;
                Inner::Zstd(Box::new(decoder))
            }
        };
        Ok(Self { inner, packing, hash: Sha256::new(), in_bytes, out_bytes: 0, bounds })
    }

    pub(crate) fn packing(&self) -> Packing {
        self.packing
    }

    /// Reads to the end and returns the digest of everything that came out (the DiffID).
    /// What follows the end of the tar stream counts: it is part of the DiffID.
    pub(crate) fn finish(mut self) -> Result<Digest, LayerFault> {
        let mut sink = [0; 64 << 10];
        while self.read(&mut sink).map_err(LayerFault::from_read)? > 0 {}
        Ok(Digest::finish(self.hash))
    }

    fn check(&self) -> Result<(), LayerFault> {
        let Bounds { max_bytes, max_bytes_name, max_ratio, ratio_free_bytes } = self.bounds;
        if self.out_bytes > max_bytes {
            return Err(LayerFault::Limit { limit: max_bytes_name, bound: max_bytes });
        }
        // At least one byte: an empty input cannot have made any output.
        let allowed = self.in_bytes.get().max(1).saturating_mul(max_ratio);
        if self.out_bytes > ratio_free_bytes && self.out_bytes > allowed {
            return Err(LayerFault::Limit { limit: "max_ratio", bound: max_ratio });
        }
        Ok(())
    }
}

impl<R: Read> Read for Decoded<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = match &mut self.inner {
            Inner::Plain(r) => r.read(buf),
            Inner::Gzip(r) => r.read(buf),
            Inner::Zstd(r) => r.read(buf),
        };
        let n = got.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::Interrupted => error,
            _ if self.packing == Packing::Plain => error,
            _ => io::Error::other(LayerFault::Compression(error)),
        })?;
        self.hash.update(&buf[..n]);
        self.out_bytes += n as u64;
        self.check().map_err(io::Error::other)?;
        Ok(n)
    }
}

/// Counts what is read.
struct Counted<R> {
    inner: R,
    count: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.count.set(self.count.get() + n as u64);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const BOUNDS: Bounds =
        Bounds { max_bytes: 1 << 20, max_bytes_name: "max_layer_bytes", max_ratio: 10, ratio_free_bytes: 4096 };

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    #[test]
    fn every_packing_gives_the_same_diff_id() {
        let text = b"some words, some words, and a few others".repeat(20);
        let packed = [text.clone(), gzip(&text), zstd::encode_all(&text[..], 3).unwrap()];
        for bytes in packed {
            let decoded = Decoded::new(&bytes[..], BOUNDS).unwrap();
            assert_eq!(decoded.finish().unwrap(), Digest::of(&text));
        }
    }

    #[test]
    fn a_compression_that_is_not_read_is_named() {
        let heads: [(&[u8], &str); 3] =
            [(b"\xfd7zXZ\0\0\x04", "xz"), (b"BZh91AY&SY\0", "bzip2"), (b"\x04\x22\x4d\x18\x64", "lz4")];
        for (head, name) in heads {
            let fault = Decoded::new(head, BOUNDS).err().expect(name);
            assert!(fault.to_string().starts_with(&format!("it is compressed with {name}, ")), "{fault}");
        }
        // The name of a tar's first member, not a compression.
        assert_eq!(Decoded::new(&b"BZh9-notes.txt"[..], BOUNDS).unwrap().packing(), Packing::Plain);
    }

    #[test]
    fn a_cut_stream_is_truncated_and_a_flipped_bit_is_damage() {
        let text: Vec<u8> = (0..3000u32).flat_map(|n| (n * 7919).to_le_bytes()).collect();
        for packed in [gzip(&text), zstd::encode_all(&text[..], 3).unwrap()] {
            let cut = Decoded::new(&packed[..packed.len() / 2], BOUNDS).unwrap().finish();
            assert!(matches!(cut, Err(LayerFault::Truncated)), "{cut:?}");
            let mut bad = packed.clone();
            let middle = bad.len() / 2;
            bad[middle..middle + 64].iter_mut().for_each(|b| *b ^= 0xff);
            let bad = Decoded::new(&bad[..], BOUNDS).unwrap().finish();
            assert!(!matches!(bad, Ok(d) if d == Digest::of(&text)));
        }
    }

    #[test]
    fn a_bomb_is_stopped_by_its_ratio_and_a_long_stream_by_its_size() {
        let bomb = gzip(&vec![0; 900_000]);
        let fault = Decoded::new(&bomb[..], BOUNDS).unwrap().finish();
        assert!(matches!(fault, Err(LayerFault::Limit { limit: "max_ratio", .. })));
        let long = vec![1; 2 << 20];
        let fault = Decoded::new(&long[..], BOUNDS).unwrap().finish();
        assert!(matches!(fault, Err(LayerFault::Limit { limit: "max_layer_bytes", .. })));
        // Small and well packed is no bomb.
        let small = gzip(&[0; 4000]);
        assert!(Decoded::new(&small[..], BOUNDS).unwrap().finish().is_ok());
    }
}
