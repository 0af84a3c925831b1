//! Owns the conversation with the kernel about links, addresses, routes and
//! neighbours in *one* network namespace, each request idempotent.
//! Must not know Machines or fleets: those decide what to ask for.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressHeaderFlags, AddressScope};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoVeth, LinkAttribute, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteScope};
use rtnetlink::proto::Connection;
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::Error;
use crate::namespace::{self, Entry, io_error};
use crate::plan::Mac;

/// A netlink socket keeps the namespace of the thread that opened it, so one of
/// these may be used from any thread afterwards.
pub(crate) struct Netlink {
    handle: rtnetlink::Handle,
    /// Dropped with this value, which ends the thread: its socket pins the namespace.
    _stop: oneshot::Sender<()>,
}

/// What this crate reads of a link.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) name: String,
    pub(crate) index: u32,
    pub(crate) alias: Option<String>,
    pub(crate) group: u32,
    /// Index of the other end of a veth, in the namespace of that end.
    pub(crate) peer: Option<u32>,
}

/// A veth pair whose second end is born inside another namespace.
pub(crate) struct Pair<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Option<Mac>,
    pub(crate) group: u32,
    pub(crate) peer_name: &'a str,
    pub(crate) peer_mac: Option<Mac>,
    pub(crate) peer_namespace: &'a File,
}

impl Netlink {
    /// Opens a socket in `namespace`, served by a thread that lives there until this
    /// value is dropped. A request is carried out inside the `send` that makes it,
    /// and deleting a link waits 20 ms there: not on a worker of the async runtime.
    pub(crate) async fn open(namespace: &File) -> Result<Self, Error> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (answer, opened) = oneshot::channel();
        let serve = move |entered: io::Result<()>| match entered.and_then(|()| connect()) {
            Ok((runtime, connection, handle)) => {
                if answer.send(Ok(handle)).is_ok() {
                    runtime.block_on(async {
                        tokio::select! {
                            () = connection => {}
                            _ = stopped => {}
                        }
                    });
                }
            }
            // A caller that has gone away needs no answer.
            Err(error) => drop(answer.send(Err(error))),
        };
        let opened = match namespace::start_thread(Entry::Into(namespace), serve) {
            Ok(()) => opened.await.unwrap_or_else(|_| Err(io::Error::other("the thread that serves it ended"))),
            Err(error) => Err(error),
        };
        let handle = opened.map_err(|source| io_error("open a netlink socket in", Path::new("netns"), source))?;
        Ok(Self { handle, _stop: stop })
    }

    /// The link of exactly this name.
    pub(crate) async fn link(&self, name: &str) -> Result<Option<Link>, Error> {
        let mut found = self.handle.link().get().match_name(name).execute();
        match found.try_next().await {
            Ok(message) => Ok(message.map(|m| read_link(&m))),
            Err(e) if is(&e, libc::ENODEV) => Ok(None),
            Err(source) => Err(failed(format!("look for interface {name}"), source)),
        }
    }

    pub(crate) async fn links(&self) -> Result<Vec<Link>, Error> {
        let all = self.handle.link().get().execute();
        let all: Vec<LinkMessage> = all.try_collect().await.map_err(|source| failed("list interfaces", source))?;
        Ok(all.iter().map(read_link).collect())
    }

    pub(crate) async fn add_pair(&self, pair: &Pair<'_>) -> Result<(), Error> {
        let mut peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(pair.peer_name)
            .setns_by_fd(std::os::fd::AsRawFd::as_raw_fd(pair.peer_namespace));
        if let Some(mac) = pair.peer_mac {
            peer = peer.address(mac.0.to_vec());
        }
        let mut link = LinkVeth::new(pair.name, pair.peer_name)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())))
            .link_group(pair.group);
        if let Some(mac) = pair.mac {
            link = link.address(mac.0.to_vec());
        }
        self.handle
            .link()
            .add(link.build())
            .execute()
            .await
            .map_err(|source| failed(format!("create the pair {}", pair.name), source))
    }

    pub(crate) async fn add_bridge(&self, name: &str, mac: Mac) -> Result<(), Error> {
        let bridge = rtnetlink::LinkBridge::new(name).address(mac.0.to_vec());
        self.handle
            .link()
            .add(bridge.build())
            .execute()
            .await
            .map_err(|source| failed(format!("create the bridge {name}"), source))
    }

    /// Deletes by index, so a link that took the name meanwhile is safe.
    pub(crate) async fn delete(&self, link: &Link) -> Result<(), Error> {
        match self.handle.link().del(link.index).execute().await {
            Err(e) if !is(&e, libc::ENODEV) => Err(failed(format!("delete interface {}", link.name), e)),
            _ => Ok(()),
        }
    }

    /// Gives the link its alias and bridge, and stops the kernel from adding a
    /// link-local address (which would wait for duplicate detection) of its own.
    pub(crate) async fn prepare(&self, index: u32, alias: Option<&str>, bridge: Option<u32>) -> Result<(), Error> {
        let quiet = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let mut message =
            LinkUnspec::new_with_index(index).append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![quiet]));
        if let Some(alias) = alias {
            message = message.alias(alias);
        }
        if let Some(bridge) = bridge {
            message = message.controller(bridge);
        }
        self.set(message.build(), "prepare", index).await
    }

    pub(crate) async fn up(&self, index: u32) -> Result<(), Error> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.set(message, "bring up", index).await
    }

    async fn set(&self, message: LinkMessage, doing: &str, index: u32) -> Result<(), Error> {
        self.handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(|source| failed(format!("{doing} interface number {index}"), source))
    }

    /// Usable at once: no duplicate address detection.
    pub(crate) async fn address(&self, index: u32, address: IpAddr, prefix_len: u8) -> Result<(), Error> {
        let mut request = self.handle.address().add(index, address, prefix_len);
        let header = &mut request.message_mut().header;
        match address {
            IpAddr::V6(_) => header.flags = AddressHeaderFlags::Nodad,
            // A link-local gateway must never be picked as a source towards the world.
            IpAddr::V4(a) if a.is_link_local() => header.scope = AddressScope::Link,
            IpAddr::V4(_) => {}
        }
        request
            .replace()
            .execute()
            .await
            .map_err(|source| failed(format!("add address {address}/{prefix_len}"), source))
    }

    /// A permanent entry: nobody is asked, nobody can answer falsely.
    pub(crate) async fn neighbour(&self, index: u32, ip: IpAddr, mac: Mac) -> Result<(), Error> {
        self.handle
            .neighbours()
            .add(index, ip)
            .link_layer_address(&mac.0)
            .replace()
            .execute()
            .await
            .map_err(|source| failed(format!("pin the neighbour {ip}"), source))
    }

    /// Everything by way of `gateway`, which is taken to be on the link.
    pub(crate) async fn default_route(&self, index: u32, gateway: IpAddr) -> Result<(), Error> {
        let route = match gateway {
            IpAddr::V6(gateway) => {
                RouteMessageBuilder::<std::net::Ipv6Addr>::new().gateway(gateway).output_interface(index).build()
            }
            IpAddr::V4(gateway) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .gateway(gateway)
                .onlink()
                .output_interface(index)
                .build(),
        };
        self.handle
            .route()
            .add(route)
            .replace()
            .execute()
            .await
            .map_err(|source| failed(format!("add the default route via {gateway}"), source))
    }

    /// A route to one address. An address that goes elsewhere already is an error:
    /// replacing it would cut off its rightful holder.
    pub(crate) async fn host_route(&self, index: u32, address: IpAddr) -> Result<(), Error> {
        let route = match address {
            IpAddr::V6(a) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .destination_prefix(a, 128)
                .output_interface(index)
                .build(),
            IpAddr::V4(a) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .destination_prefix(a, 32)
                .scope(RouteScope::Link)
                .output_interface(index)
                .build(),
        };
        match self.handle.route().add(route).execute().await {
            Ok(()) => Ok(()),
            Err(e) if is(&e, libc::EEXIST) => {
                if self.interface_towards(address).await? == Some(index) {
                    Ok(())
                } else {
                    Err(Error::AddressTaken { address })
                }
            }
            Err(source) => Err(failed(format!("route {address}"), source)),
        }
    }

    /// The interface that packets to `address` would leave by.
    async fn interface_towards(&self, address: IpAddr) -> Result<Option<u32>, Error> {
        let query = match address {
            IpAddr::V6(a) => RouteMessageBuilder::<std::net::Ipv6Addr>::new().destination_prefix(a, 128).build(),
            IpAddr::V4(a) => RouteMessageBuilder::<std::net::Ipv4Addr>::new().destination_prefix(a, 32).build(),
        };
        // With a destination the kernel looks up one route instead of listing all.
        let mut found = self.handle.route().get(query).execute();
        let route: Option<RouteMessage> =
            found.try_next().await.map_err(|source| failed(format!("look up the route to {address}"), source))?;
        Ok(route.and_then(|r| {
            r.attributes.iter().find_map(|a| match a {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            })
        }))
    }

    /// Every address of this namespace with the interface that holds it.
    pub(crate) async fn addresses(&self) -> Result<Vec<(u32, IpAddr)>, Error> {
        use rtnetlink::packet_route::address::AddressAttribute;
        let all: Vec<_> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|source| failed("list addresses", source))?;
        Ok(all
            .iter()
            .flat_map(|m| m.attributes.iter().map(|a| (m.header.index, a)))
            .filter_map(|(index, a)| match a {
                AddressAttribute::Address(ip) => Some((index, *ip)),
                _ => None,
            })
            .collect())
    }

    /// Index of this namespace's loopback, brought up.
    pub(crate) async fn loopback_up(&self) -> Result<(), Error> {
        match self.link("lo").await? {
            Some(lo) => self.up(lo.index).await,
            None => Ok(()),
        }
    }
}

/// A socket in the calling thread's namespace, and what drives it.
fn connect() -> io::Result<(Runtime, Connection<RouteNetlinkMessage>, rtnetlink::Handle)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (connection, handle, _) = {
        let _context = runtime.enter();
        rtnetlink::new_connection()?
    };
    Ok((runtime, connection, handle))
}

fn read_link(message: &LinkMessage) -> Link {
    let mut link = Link { name: String::new(), index: message.header.index, alias: None, group: 0, peer: None };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            LinkAttribute::Group(group) => link.group = *group,
            LinkAttribute::Link(index) => link.peer = Some(*index),
            _ => {}
        }
    }
    link
}

fn is(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(m) if m.raw_code() == -errno)
}

fn failed(doing: impl Into<String>, source: rtnetlink::Error) -> Error {
    Error::Netlink { doing: doing.into(), source }
}
