//! `godwit image`: puts images into control, from an OCI layout folder, an OCI archive or a `docker save` archive.
//! What an image must look like is control's to judge; here bytes are only carried.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use clap::Subcommand;
use futures_util::StreamExt;
use godwit_api::endpoint::{Empty, percent_encode};
use godwit_api::endpoints::{IMAGE_UPLOAD, ImagesDelete, ImagesList};
use godwit_api::fleet::Image;
use godwit_base::http::client::Body;
use http_body::Frame;
use http_body_util::{BodyExt, Limited, StreamBody};
use tokio::sync::mpsc;

use super::context::Context;
use super::output::{Column, bytes};
use crate::error::{CliError, Result};

/// Uploading and unpacking together take at most this long.
const LOAD_TIMEOUT: Duration = Duration::from_secs(3600);
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks read ahead of the network.
const CHUNKS_QUEUED: usize = 16;
const ANSWER_LIMIT_BYTES: usize = 4 << 20;

#[derive(Subcommand)]
pub enum Command {
    /// Load images into the fleet
    Load {
        /// OCI layout directories, OCI archives or `docker save` archives; `-` reads an archive from standard input
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
        /// The name to give it, `name[:tag]`; default: the name in the archive
        #[arg(long, visible_alias = "tag", value_name = "NAME")]
        name: Option<String>,
    },
    /// Remove image names; the data is deleted once no Machine uses it
    ///
    /// Machines that run the image keep running: they are pinned to its digest.
    #[command(visible_alias = "rm")]
    Remove {
        /// `name[:tag]`; the default tag is `latest`
        #[arg(required = true, value_name = "IMAGE")]
        names: Vec<String>,
    },
    /// List images
    #[command(visible_alias = "ls")]
    List,
}

pub async fn run(command: Command, context: &Context) -> Result<()> {
    let output = context.output;
    let images = match command {
        Command::Load { paths, name } => load_all(context, &paths, name.as_deref()).await?,
        Command::Remove { names } => return remove(context, &names).await,
        Command::List => context.client.call::<ImagesList>(&[], &Empty {}, &Empty {}).await?,
    };
    if output.json {
        return output.json(&images);
    }
    if output.quiet {
        images.iter().for_each(|image| println!("{}", image.name));
        return Ok(());
    }
    let rows = images.into_iter().map(|image| {
        let digest = image.digest.chars().take("sha256:".len() + 12).collect();
        let used = if image.in_use { "yes" } else { "no" };
        vec![
            image.name,
            digest,
            bytes(image.size_bytes),
            image.layers.to_string(),
            used.to_owned(),
            output.when(&image.created_at),
        ]
    });
    let columns = [
        Column("NAME", 0),
        Column("DIGEST", 1),
        Column("SIZE", 0),
        Column("LAYERS", 5),
        Column("IN USE", 3),
        Column("LOADED", 2),
    ];
    output.list(&columns, rows.collect());
    Ok(())
}

async fn remove(context: &Context, names: &[String]) -> Result<()> {
    let output = context.output;
    let mut removed = Vec::new();
    for name in names {
        let image = context.client.call::<ImagesDelete>(&[name], &Empty {}, &Empty {}).await?;
        if output.quiet {
            println!("{}", image.name);
        } else if !output.json {
            let rest = if image.in_use { "Machines that run it keep it" } else { "its data go with the next clean-up" };
            println!("{} is removed; {rest}", image.name);
        }
        removed.push(image);
    }
    if output.json { output.json(&removed) } else { Ok(()) }
}

async fn load_all(context: &Context, paths: &[PathBuf], name: Option<&str>) -> Result<Vec<Image>> {
    if name.is_some() && paths.len() > 1 {
        return Err(CliError::usage("--name names one image, and several are given")
            .hint("load each by itself, or leave --name out: each keeps its own name"));
    }
    // A path that cannot be read is named before anything is loaded.
    let sources = paths.iter().map(|path| measure(path)).collect::<Result<Vec<_>>>()?;
    let mut images = Vec::new();
    for (path, (total_bytes, source)) in paths.iter().zip(sources) {
        images.extend(load(context, path, total_bytes, source, name).await?);
    }
    Ok(images)
}

async fn load(
    context: &Context,
    path: &Path,
    total_bytes: u64,
    source: Source,
    name: Option<&str>,
) -> Result<Vec<Image>> {
    let bar = context.output.byte_progress(&format!("loading {}", path.display()), total_bytes);
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(CHUNKS_QUEUED);
    let from = path.to_owned();
    let reading = tokio::task::spawn_blocking(move || read(&from, source, sender));
    let counted = bar.clone();
    let chunks = futures_util::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|chunk| (chunk, receiver))
    })
    .map(move |chunk| {
        let chunk = chunk?;
        counted.inc(chunk.len() as u64);
        Ok(Frame::data(chunk))
    });
    let body: Body = BodyExt::map_err(StreamBody::new(chunks), |error: io::Error| error.into()).boxed();
    let mut upload = IMAGE_UPLOAD.to_owned();
    if let Some(name) = name {
        upload.push_str("?name=");
        percent_encode(name, &mut upload);
    }
    let request = http::Request::post("/")
        .header(http::header::CONTENT_TYPE, "application/x-tar")
        .body(body)
        .map_err(|error| CliError::failed(error.to_string()))?;
    let answer = context.client.send(&upload, request, LOAD_TIMEOUT).await;
    bar.finish_and_clear();
    // The reader ends when the body is dropped, so this waits for nothing; its own fault explains the other's best.
    let read = reading.await.map_err(|error| CliError::failed(error.to_string()))?;
    if let Err(error) = read
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        return Err(CliError::failed(format!("cannot read {}: {error}", path.display())));
    }
    let answer = Limited::new(answer?.into_body(), ANSWER_LIMIT_BYTES).collect().await;
    let answer = answer.map_err(|error| CliError::failed(format!("the answer broke off: {error}")))?.to_bytes();
    Ok(serde_json::from_slice(&answer)?)
}

/// Where the bytes of an archive come from.
#[derive(Clone, Copy)]
enum Source {
    File,
    /// Packed on the way.
    Folder,
    StandardInput,
}

/// Size in bytes, 0 if nobody knows, and what kind of source it is.
fn measure(path: &Path) -> Result<(u64, Source)> {
    if path == Path::new("-") {
        if io::stdin().is_terminal() {
            return Err(CliError::usage("standard input is a terminal, and `-` reads an archive from it")
                .hint("docker save nginx | godwit image load - --name nginx"));
        }
        return Ok((0, Source::StandardInput));
    }
    let found = std::fs::metadata(path).map_err(|error| {
        let made = CliError::failed(format!("cannot read {}: {error}", path.display()));
        if error.kind() == io::ErrorKind::NotFound { CliError::not_found(made.message) } else { made }
    })?;
    if !found.is_dir() {
        return Ok((found.len(), Source::File));
    }
    if !path.join("oci-layout").is_file() {
        return Err(CliError::failed(format!("{} is not an OCI layout: it has no file `oci-layout`", path.display()))
            .hint("make one with `skopeo copy ... oci:DIR`, umoci or buildah"));
    }
    let mut total_bytes = 0;
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let kind = entry.metadata()?;
            if kind.is_dir() { folders.push(entry.path()) } else { total_bytes += kind.len() }
        }
    }
    Ok((total_bytes, Source::Folder))
}

/// Sends the archive's bytes, whole or with the error that cut them off: half an archive must not look like one.
fn read(path: &Path, source: Source, sender: mpsc::Sender<io::Result<Bytes>>) -> io::Result<()> {
    let mut chunks = Chunks { sender: sender.clone(), buffer: Vec::with_capacity(CHUNK_BYTES) };
    let mut pack = || {
        match source {
            Source::Folder => {
                let mut tar = tar::Builder::new(&mut chunks);
                tar.follow_symlinks(false);
                tar.append_dir_all(".", path)?;
                tar.finish()?;
            }
            Source::File => _ = io::copy(&mut std::fs::File::open(path)?, &mut chunks)?,
            Source::StandardInput => _ = io::copy(&mut io::stdin().lock(), &mut chunks)?,
        }
        chunks.flush()
    };
    let packed = pack();
    if let Err(error) = &packed {
        // Nobody may be listening any more; then the error goes up the other way.
        let _ = sender.blocking_send(Err(io::Error::new(error.kind(), error.to_string())));
    }
    packed
}

/// Gathers what is written into chunks of one size and sends them.
struct Chunks {
    sender: mpsc::Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == CHUNK_BYTES {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK_BYTES));
        self.sender.blocking_send(Ok(chunk.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
