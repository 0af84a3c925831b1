//! A relay before a door, which can be cut, go black, or be killed.

use std::net::SocketAddr;

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
                        let (mut client, mut door) = (client, door);
                        tokio::select! {
                            _ = tokio::io::copy_bidirectional(&mut client, &mut door) => {}
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
