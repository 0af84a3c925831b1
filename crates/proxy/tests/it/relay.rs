//! A relay before a door, which can be cut, go black, or be killed, or be far away.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// Stands between an edge and a door, and can be cut (connections end) or go black (nothing passes, nothing ends).
pub struct Relay {
    pub addr: SocketAddr,
    pub black: watch::Sender<bool>,
    pub cut: watch::Sender<u64>,
    accepting: AbortOnDropHandle<()>,
}

impl Relay {
    pub async fn to(door: SocketAddr) -> Self {
        Self::far(door, Duration::ZERO).await
    }

    /// Everything takes `delay` each way.
    pub async fn far(door: SocketAddr, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (black, cut) = (watch::Sender::new(false), watch::Sender::new(0));
        let (is_black, is_cut) = (black.subscribe(), cut.subscribe());
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (mut is_black, mut is_cut) = (is_black.clone(), is_cut.clone());
                is_cut.mark_unchanged();
                tokio::spawn(async move {
                    let relayed = async {
                        let Ok(door) = TcpStream::connect(door).await else { return };
                        let ((client_in, client_out), (door_in, door_out)) = (client.into_split(), door.into_split());
                        let there = pass(client_in, door_out, delay);
                        let back = pass(door_in, client_out, delay);
                        tokio::select! {
                            _ = async { tokio::join!(there, back) } => {}
                            () = async { drop(is_black.wait_for(|black| *black).await) } => {
                                std::future::pending().await
                            }
                        }
                    };
                    tokio::select! {
                        () = relayed => {}
                        _ = is_cut.changed() => {}
                    }
                });
            }
        });
        Self { addr, black, cut, accepting: AbortOnDropHandle::new(accepting) }
    }

    /// As a process that is killed: connections end, and nobody accepts any more.
    pub fn kill(self) {
        self.accepting.abort();
        self.cut.send_modify(|cuts| *cuts += 1);
    }
}

/// One direction, to its end; dropping the sending half tells the end on.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
