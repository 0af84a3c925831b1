//! A bounded tar reader: ustar, PAX (POSIX.1-2001 pax, "pax Interchange Format"), the GNU
//! long names and the sparse formats of both. Knows no files: a stream in, members out.
//!
//! Not the `tar` crate's reader, because that one reads a long name or a PAX header of any
//! size into memory, and knows only one of the four sparse formats. Where readers differ
//! (data after a link, one zero block at the end) we do as Go's `archive/tar` does: images
//! are written by it, and a second reading of the same bytes is how things get smuggled.

mod fields;

use std::io::{self, Read};

use self::fields::{
    BAD_SPARSE, MAX_SPARSE_SEGMENTS, check_map, decimal, gnu_segments, number, pairs, pax_records, signed_number,
    timestamp, until_nul,
};
use crate::error::LayerFault;

const BLOCK: usize = 512;
/// Bytes of one long name or PAX header.
pub(crate) const MAX_HEADER_BYTES: u64 = 1 << 20;
/// Extension headers before one member.
const MAX_HEADERS_PER_MEMBER: usize = 16;

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Folder,
    Symlink,
    HardLink,
    Fifo,
    Device,
}

/// One member; its data follow through [`TarReader::read`].
#[derive(Debug)]
pub(crate) struct Member {
    pub name: Vec<u8>,
    pub kind: Kind,
    pub link: Vec<u8>,
    /// Size of the file that it makes (the full size of a sparse file).
    pub size: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    /// `SCHILY.xattr.*`, names without that prefix.
    pub xattrs: Vec<(String, Vec<u8>)>,
    /// (offset, length) of each segment of data of a sparse file.
    pub sparse: Option<Vec<(u64, u64)>>,
}

impl Member {
    /// The name for people.
    pub(crate) fn label(&self) -> String {
        label(&self.name)
    }
}

/// A name that may be anything, shortened and printable.
pub(crate) fn label(name: &[u8]) -> String {
    const SHOWN_BYTES: usize = 300;
    let cut = &name[..name.len().min(SHOWN_BYTES)];
    String::from_utf8_lossy(cut).escape_debug().to_string()
}

pub(crate) struct TarReader<R> {
    inner: R,
    data_left: u64,
    padding: u64,
    /// Of the member that was read last, or was being read when an error came.
    last_name: Option<Vec<u8>>,
}

type Result<T> = std::result::Result<T, LayerFault>;

/// What extension headers said about the next member.
#[derive(Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Vec<(String, Vec<u8>)>,
}

impl Extensions {
    /// The last record of that key wins; an empty value takes the key back.
    fn get(&self, key: &str) -> Option<&[u8]> {
        let (_, value) = self.pax.iter().rev().find(|(k, _)| k == key)?;
        (!value.is_empty()).then_some(value)
    }

    fn number(&self, key: &'static str) -> Result<Option<u64>> {
        self.get(key).map(decimal).transpose()
    }

    /// A name or target of PAX; it may not hold a NUL (the file system would cut it there).
    fn text(&self, key: &str) -> Result<Option<Vec<u8>>> {
        match self.get(key) {
            Some(value) if value.contains(&0) => Err(LayerFault::BadName("it holds a NUL")),
            value => Ok(value.map(<[u8]>::to_vec)),
        }
    }
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, data_left: 0, padding: 0, last_name: None }
    }

    /// The member that an error of [`TarReader::next`] is about, or comes after.
    pub(crate) fn last_label(&self) -> Option<String> {
        self.last_name.as_deref().map(label)
    }

    /// The stream behind the archive, to read what follows its end.
    pub(crate) fn into_inner(self) -> R {
        self.inner
    }

    /// The next member, or `None` at the end. Skips what was not read of the last one.
    pub(crate) fn next(&mut self) -> Result<Option<Member>> {
        let mut extensions = Extensions::default();
        for _ in 0..MAX_HEADERS_PER_MEMBER {
            self.skip_rest()?;
            let Some(header) = self.header()? else {
                return match extensions.pax.is_empty() && extensions.name.is_none() {
                    true => Ok(None),
                    false => Err(LayerFault::Truncated),
                };
            };
            match header[156] {
                b'L' => extensions.name = Some(self.long_name(&header)?),
                b'K' => extensions.link = Some(self.long_name(&header)?),
                b'x' => {
                    let body = self.body(&header)?;
                    extensions.pax.extend(pax_records(&body)?);
                }
                // Global headers only carry comments (git archive); Go ignores them too.
                b'g' => self.begin_data(number(&header[124..136])?),
                _ => return self.member(&header, &extensions).map(Some),
            }
        }
        Err(LayerFault::Tar("too many extension headers"))
    }

    fn member(&mut self, header: &[u8; BLOCK], extensions: &Extensions) -> Result<Member> {
        let name = match (extensions.text("path")?, &extensions.name) {
            (Some(name), _) => name,
            (None, Some(name)) => name.clone(),
            (None, None) => header_name(header),
        };
        self.last_name = Some(name.clone());
        let link = match (extensions.text("linkpath")?, &extensions.link) {
            (Some(link), _) => link,
            (None, Some(link)) => link.clone(),
            (None, None) => until_nul(&header[157..257]).to_vec(),
        };
        let (kind, has_data) = match header[156] {
            // Before POSIX a trailing slash was the only sign of a folder.
            0 | b'0' if name.ends_with(b"/") => (Kind::Folder, false),
            0 | b'0' | b'7' | b'S' => (Kind::File, true),
            b'1' => (Kind::HardLink, false),
            b'2' => (Kind::Symlink, false),
            b'3' | b'4' => (Kind::Device, false),
            b'5' => (Kind::Folder, false),
            b'6' => (Kind::Fifo, false),
            other => return Err(LayerFault::Unsupported(char::from(other))),
        };
        let stored = match (has_data, extensions.number("size")?) {
            (false, _) => 0,
            (true, Some(size)) => size,
            (true, None) => number(&header[124..136])?,
        };
        self.begin_data(stored);
        let id = |key, field: &[u8]| -> Result<u32> {
            let value = match extensions.number(key)? {
                Some(value) => value,
                None => number(field)?,
            };
            // All ones means "no change" to chown(2).
            u32::try_from(value).ok().filter(|&id| id != u32::MAX).ok_or(LayerFault::OutOfRange(key))
        };
        let mut member = Member {
            kind,
            link,
            size: stored,
            // Mode holds the type bits in some writers; the lowest twelve are ours.
            mode: (number(&header[100..108])? & 0o7777) as u32,
            uid: id("uid", &header[108..116])?,
            gid: id("gid", &header[116..124])?,
            mtime: match extensions.get("mtime") {
                Some(text) => timestamp(text)?,
                None => (signed_number(&header[136..148])?, 0),
            },
            xattrs: extensions
                .pax
                .iter()
                .filter_map(|(key, value)| Some((key.strip_prefix("SCHILY.xattr.")?.to_owned(), value.clone())))
                .collect(),
            name,
            sparse: None,
        };
        if has_data {
            self.sparse_map(header, extensions, &mut member)?;
        }
        Ok(member)
    }

    /// Fills in the segments of a sparse file in any of its formats (GNU tar manual,
    /// "Storing Sparse Files").
    fn sparse_map(&mut self, header: &[u8; BLOCK], extensions: &Extensions, member: &mut Member) -> Result<()> {
        let map = if header[156] == b'S' {
            member.size = number(&header[483..495])?;
            self.old_gnu_map(header)?
        } else if extensions.get("GNU.sparse.major") == Some(b"1") {
            member.size = extensions.number("GNU.sparse.realsize")?.ok_or(BAD_SPARSE)?;
            self.map_in_data()?
        } else if let Some(text) = extensions.get("GNU.sparse.map") {
            member.size = extensions.number("GNU.sparse.size")?.ok_or(BAD_SPARSE)?;
            pairs(text.split(|&b| b == b',').map(decimal))?
        } else if let Some(size) = extensions.number("GNU.sparse.size")? {
            member.size = size;
            let wanted = |key: &str| key == "GNU.sparse.offset" || key == "GNU.sparse.numbytes";
            pairs(extensions.pax.iter().filter(|(k, _)| wanted(k)).map(|(_, v)| decimal(v)))?
        } else {
            return Ok(());
        };
        if let Some(name) = extensions.text("GNU.sparse.name")? {
            member.name = name;
        }
        check_map(&map, member.size, self.data_left)?;
        member.sparse = Some(map);
        Ok(())
    }

    fn old_gnu_map(&mut self, header: &[u8; BLOCK]) -> Result<Vec<(u64, u64)>> {
        let mut map = Vec::new();
        gnu_segments(&header[386..482], &mut map)?;
        let mut more = header[482] != 0;
        while more {
            // The map's further blocks stand before the data and are not part of its size.
            let block = self.block()?.ok_or(LayerFault::Truncated)?;
            gnu_segments(&block[..504], &mut map)?;
            more = block[504] != 0;
        }
        Ok(map)
    }

    /// PAX sparse format 1.0: the map is text at the start of the data, in whole blocks.
    fn map_in_data(&mut self) -> Result<Vec<(u64, u64)>> {
        let mut numbers = Vec::new();
        let mut digits = Vec::new();
        let mut wanted = None;
        while wanted.is_none_or(|n| numbers.len() < n) {
            let mut block = [0; BLOCK];
            self.read_exact(&mut block).map_err(LayerFault::from_read)?;
            for byte in block {
                if wanted.is_some_and(|n| numbers.len() >= n) {
                    break;
                }
                if byte != b'\n' {
                    digits.push(byte);
                    if digits.len() > 20 {
                        return Err(BAD_SPARSE);
                    }
                    continue;
                }
                let value = decimal(&digits)?;
                digits.clear();
                match wanted {
                    Some(_) => numbers.push(value),
                    None if value <= MAX_SPARSE_SEGMENTS as u64 => wanted = Some(value as usize * 2),
                    None => return Err(BAD_SPARSE),
                }
            }
        }
        pairs(numbers.into_iter().map(Ok))
    }

    /// Reads the data of the current member; 0 at its end.
    pub(crate) fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = buf.len().min(usize::try_from(self.data_left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let n = self.inner.read(&mut buf[..want])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.data_left -= n as u64;
        Ok(n)
    }

    fn read_exact(&mut self, buf: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.read(&mut buf[filled..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => filled += n,
            }
        }
        Ok(())
    }

    fn begin_data(&mut self, size: u64) {
        self.data_left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    /// Skips what is left of the member's data and its padding. A stream may end instead of
    /// its last padding: `umoci insert` writes such layers, and Go reads them.
    fn skip_rest(&mut self) -> Result<()> {
        let data = std::mem::take(&mut self.data_left);
        if self.skip(data)? < data {
            return Err(LayerFault::Truncated);
        }
        let padding = std::mem::take(&mut self.padding);
        self.skip(padding).map(drop)
    }

    /// Skips so many bytes, or fewer if the stream ends.
    fn skip(&mut self, bytes: u64) -> Result<u64> {
        let mut skipped = 0;
        let mut sink = [0; 16 << 10];
        while skipped < bytes {
            let want = sink.len().min(usize::try_from(bytes - skipped).unwrap_or(usize::MAX));
            match self.inner.read(&mut sink[..want]).map_err(LayerFault::from_read)? {
                0 => break,
                n => skipped += n as u64,
            }
        }
        Ok(skipped)
    }

    /// One block, or `None` if the stream ends exactly before it.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..]).map_err(LayerFault::from_read)? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(LayerFault::Truncated),
                n => filled += n,
            }
        }
        Ok(Some(block))
    }

    fn header(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let Some(block) = self.block()? else { return Ok(None) };
        if block == [0; BLOCK] {
            // The end is two blocks of zeros; what comes after one must be another.
            return match self.block()? {
                None => Ok(None),
                Some(second) if second == [0; BLOCK] => Ok(None),
                Some(_) => Err(LayerFault::Tar("a single block of zeros between members")),
            };
        }
        let sum: u64 =
            block.iter().enumerate().map(|(at, &b)| u64::from(if (148..156).contains(&at) { b' ' } else { b })).sum();
        match number(&block[148..156])? == sum {
            true => Ok(Some(block)),
            false => Err(LayerFault::Tar("a header's checksum is wrong")),
        }
    }

    fn long_name(&mut self, header: &[u8; BLOCK]) -> Result<Vec<u8>> {
        let body = self.body(header)?;
        Ok(until_nul(&body).to_vec())
    }

    fn body(&mut self, header: &[u8; BLOCK]) -> Result<Vec<u8>> {
        let size = number(&header[124..136])?;
        if size > MAX_HEADER_BYTES {
            return Err(LayerFault::Limit { limit: "MAX_HEADER_BYTES", bound: MAX_HEADER_BYTES });
        }
        self.begin_data(size);
        let mut body = vec![0; size as usize];
        self.read_exact(&mut body).map_err(LayerFault::from_read)?;
        Ok(body)
    }
}

fn header_name(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(&header[..100]);
    // Only POSIX headers have the prefix; GNU keeps times there.
    match (&header[257..263], until_nul(&header[345..500])) {
        (b"ustar\0", prefix) if !prefix.is_empty() => [prefix, b"/", name].concat(),
        _ => name.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_huge_header_is_refused_before_it_is_read() {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::XHeader);
        header.set_size(1 << 40);
        header.set_cksum();
        let fault = TarReader::new(&header.as_bytes()[..]).next();
        assert!(matches!(fault, Err(LayerFault::Limit { limit: "MAX_HEADER_BYTES", .. })));
    }
}
