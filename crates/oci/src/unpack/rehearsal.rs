//! The unpacker's rules played through on names alone: would every member of an image's layers find its place? Knows
//! no files and no bytes, so a load can afford it, and what it refuses is refused with the unpacker's own errors.
//!
//! The image is one tree here, as applying the layers one upon the other gives it; each entry remembers the layer
//! that it belongs to, since a whiteout hides what lower layers have and leaves what its own layer brought.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::member::{self, MAX_PATH_BYTES, MAX_PATH_PARTS, Role};
use super::merged::MAX_LINKS;
use crate::error::LayerFault;
use crate::limits::{LayerCount, Limits};
use crate::tarball::{Kind, Member, label};

/// Entries that the tree may grow to. Past them only what a member's own name tells is judged: a hundred bytes each
/// is what checking an image may cost in memory, and the unpacker judges it all again.
const MAX_ENTRIES: usize = 500_000;

type Result<T> = std::result::Result<T, LayerFault>;
type Name = Box<[u8]>;
type Entries = HashMap<Name, Entry>;

struct Entry {
    /// Who brought it, or had to bring it up for something in it.
    layer: u32,
    node: Node,
}

enum Node {
    Folder(Entries),
    Link(Name),
    /// A file of so many bytes.
    File(u64),
}

/// An image on its way through the rules, bottom layer first.
pub(crate) struct Rehearsal<'a> {
    limits: &'a Limits,
    root: Entries,
    layer: u32,
    count: LayerCount,
    /// Entries ever made; those that went count too, so it bounds the tree and the work.
    entries: usize,
}

impl<'a> Rehearsal<'a> {
    pub(crate) fn new(limits: &'a Limits) -> Self {
        Self { limits, root: Entries::new(), layer: 0, count: LayerCount::default(), entries: 0 }
    }

    /// What follows is of the next layer.
    pub(crate) fn begin_layer(&mut self) {
        self.layer += 1;
        self.count = LayerCount::default();
    }

    /// Judges one member.
    pub(crate) fn apply(&mut self, member: &Member) -> Result<()> {
        self.count.member(member.size, self.limits)?;
        let role = member::role(&member.name)?;
        if self.entries > MAX_ENTRIES {
            self.root = Entries::new();
            return Ok(());
        }
        match role {
            Role::Skip => Ok(()),
            Role::Root if member.kind == Kind::Folder => Ok(()),
            Role::Root => Err(LayerFault::BadName("the root can only be a folder")),
            Role::Opaque(folder) => {
                let at = self.enter(&folder)?;
                let layer = self.layer;
                keep_only(self.folder(&at)?, layer);
                Ok(())
            }
            Role::Whiteout(hidden) => self.hide(&hidden),
            Role::Entry(path) => match member.kind {
                Kind::Folder => self.make_folder(&path),
                Kind::File => self.replace(&path, Some(Node::File(member.size))),
                Kind::Fifo => self.replace(&path, Some(Node::File(0))),
                Kind::Symlink if member.link.is_empty() => Err(LayerFault::BadName("a symbolic link to nothing")),
                Kind::Symlink => self.replace(&path, Some(Node::Link(member.link.clone().into()))),
                Kind::HardLink => self.hard_link(&path, &member.link),
                Kind::Device => self.replace(&path, None),
            },
        }
    }

    // ---- members -----------------------------------------------------------------------

    fn make_folder(&mut self, path: &Path) -> Result<()> {
        let (parent, name) = split(path)?;
        let at = self.enter(parent)?;
        let layer = self.layer;
        match self.folder(&at)?.get_mut(name) {
            Some(Entry { layer: owner, node: Node::Folder(_) }) => *owner = layer,
            _ => self.put(&at, name, Node::Folder(Entries::new()))?,
        }
        Ok(())
    }

    /// `None` stands for what is left out and still hides what was there.
    fn replace(&mut self, path: &Path, node: Option<Node>) -> Result<()> {
        let (parent, name) = split(path)?;
        let at = self.enter(parent)?;
        match node {
            Some(node) => self.put(&at, name, node),
            None => {
                self.folder(&at)?.remove(name);
                Ok(())
            }
        }
    }

    fn hard_link(&mut self, path: &Path, link: &[u8]) -> Result<()> {
        let missing = || LayerFault::LinkTarget(label(link));
        let target = match member::clean(link) {
            Err(LayerFault::LeavesRoot) => return Err(LayerFault::LinkLeavesRoot(label(link))),
            other => other?,
        };
        let (folder, target_name) = split(&target)?;
        let mut from = self.find(folder)?.ok_or_else(missing)?;
        let (node, below) = match self.folder(&from)?.get(target_name) {
            Some(Entry { layer, node: Node::File(bytes) }) => (Node::File(*bytes), (*layer, *bytes)),
            Some(Entry { layer, node: Node::Link(target) }) => {
                (Node::Link(target.clone()), (*layer, target.len() as u64))
            }
            Some(Entry { node: Node::Folder(_), .. }) | None => return Err(missing()),
        };
        if below.0 != self.layer {
            // It is copied up, with the folders that lead to it.
            self.count.member(below.1, self.limits)?;
            self.walk(from.clone(), true)?;
            let layer = self.layer;
            if let Some(entry) = self.folder(&from)?.get_mut(target_name) {
                entry.layer = layer;
            }
        }
        let (parent, name) = split(path)?;
        let mut at = self.enter(parent)?;
        from.push(target_name.into());
        at.push(name.into());
        if from.starts_with(&at) {
            return Err(missing());
        }
        at.pop();
        self.put(&at, name, node)
    }

    fn hide(&mut self, path: &Path) -> Result<()> {
        let (parent, name) = split(path)?;
        let Some(at) = self.find(parent)? else { return Ok(()) };
        let layer = self.layer;
        let entries = self.folder(&at)?;
        let Some(entry) = entries.get_mut(name) else { return Ok(()) };
        if entry.layer == layer {
            if let Node::Folder(inside) = &mut entry.node {
                keep_only(inside, layer);
            }
            return Ok(());
        }
        entries.remove(name);
        self.walk(at, true).map(drop)
    }

    // ---- places ------------------------------------------------------------------------

    /// The folder at a path that is free of links.
    fn folder(&mut self, at: &[Name]) -> Result<&mut Entries> {
        at.iter().try_fold(&mut self.root, |entries, name| match entries.get_mut(name).map(|entry| &mut entry.node) {
            Some(Node::Folder(inside)) => Ok(inside),
            _ => Err(LayerFault::ParentNotFolder(label(name))),
        })
    }

    fn put(&mut self, at: &[Name], name: &[u8], node: Node) -> Result<()> {
        self.entries += 1;
        let entry = Entry { layer: self.layer, node };
        self.folder(at)?.insert(name.into(), entry);
        Ok(())
    }

    fn enter(&mut self, asked: &Path) -> Result<Vec<Name>> {
        let found = self.walk(parts(asked.as_os_str().as_bytes()).map(Name::from).collect(), true)?;
        found.ok_or(LayerFault::BadName("it has no parent"))
    }

    fn find(&mut self, asked: &Path) -> Result<Option<Vec<Name>>> {
        self.walk(parts(asked.as_os_str().as_bytes()).map(Name::from).collect(), false)
    }

    /// Where a path leads, free of links. With `make`, every folder on the way becomes this layer's, and what is
    /// missing is made; without, `None` means that there is no such folder.
    fn walk(&mut self, asked: Vec<Name>, make: bool) -> Result<Option<Vec<Name>>> {
        let layer = self.layer;
        let (mut here, mut pending): (Vec<Name>, Vec<Name>) = (Vec::new(), asked.into_iter().rev().collect());
        let mut links = 0;
        while let Some(name) = pending.pop() {
            if *name == *b".." {
                here.pop();
                continue;
            }
            let path_bytes = here.iter().map(|part| part.len() + 1).sum::<usize>() + name.len();
            if here.len() >= MAX_PATH_PARTS || path_bytes > MAX_PATH_BYTES {
                return Err(LayerFault::BadName("it leads too deep through symbolic links"));
            }
            let is_new = match self.folder(&here)?.get_mut(&name) {
                Some(Entry { node: Node::Link(target), .. }) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(LayerFault::TooManySymlinks);
                    }
                    if target.first() == Some(&b'/') {
                        here.clear();
                    }
                    pending.extend(parts(target).rev().map(Name::from));
                    continue;
                }
                Some(Entry { layer: owner, node: Node::Folder(_) }) => {
                    make && std::mem::replace(owner, if make { layer } else { *owner }) != layer
                }
                Some(Entry { node: Node::File(_), .. }) if make => {
                    here.push(name);
                    return Err(LayerFault::ParentNotFolder(label(&here.join(&b'/'))));
                }
                None if make => {
                    self.put(&here, &name, Node::Folder(Entries::new()))?;
                    true
                }
                Some(Entry { node: Node::File(_), .. }) | None => return Ok(None),
            };
            if is_new {
                self.count.member(0, self.limits)?;
            }
            here.push(name);
        }
        Ok(Some(here))
    }
}

/// Drops what lower layers have in a folder.
fn keep_only(entries: &mut Entries, layer: u32) {
    entries.retain(|_, entry| entry.layer == layer);
    for entry in entries.values_mut() {
        if let Node::Folder(inside) = &mut entry.node {
            keep_only(inside, layer);
        }
    }
}

fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|&b| b == b'/').filter(|part| !part.is_empty() && *part != b".")
}

fn split(path: &Path) -> Result<(&Path, &[u8])> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok((parent, OsStr::as_bytes(name))),
        _ => Err(LayerFault::BadName("it means the root")),
    }
}
