//! Every role tells whether it is well and what it counts.

use std::time::Duration;

use godwit_lab::plain;

use crate::support::{fleet, run};

#[test]
fn every_role_tells_its_health_and_its_figures() {
    run(async {
        let fleet = fleet(1, &[]);
        let dev = fleet.dev().expect("dev.json");
        let host = &dev.hosts[0];
        let api = dev.api_url.trim_start_matches("http://").to_owned();
        let mut asked = 0;
        for (role, pid, addresses) in [
            ("control", dev.control_pid, vec![api]),
            ("edge", dev.edge_pid, listening(dev.edge_pid)),
            ("agent", host.agent_pid, listening(host.agent_pid)),
            ("door", host.door_pid, listening(host.door_pid)),
        ] {
            // A role that has just begun may say why it is not well yet; a fleet is up before each of them has heard all.
            let mut well = false;
            for _ in 0..100 {
                well = answers(&addresses, role).await;
                if well {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            asked += usize::from(well);
            assert!(well, "{role} (pid {pid}) answers /healthz on one of {addresses:?}");
        }
        assert!(asked >= 4);
    });
}

/// Whether one of these says that it is well and what it counts.
async fn answers(addresses: &[String], role: &str) -> bool {
    for address in addresses {
        let Ok(health) = plain::get(address, "health", "/healthz", Duration::from_secs(2)).await else {
            continue;
        };
        if health.status != 200 || health.text().trim() != "ok" {
            continue;
        }
        let metrics = plain::get(address, "health", "/metrics", Duration::from_secs(5)).await.expect("metrics");
        assert!(metrics.text().contains("godwit_") && metrics.text().ends_with("# EOF\n"), "{role}");
        return true;
    }
    false
}

/// The TCP addresses that a process listens on, as they can be dialled from here.
fn listening(pid: i32) -> Vec<String> {
    let mut inodes = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        if let Ok(link) = std::fs::read_link(entry.path())
            && let Some(inode) = link.to_string_lossy().strip_prefix("socket:[").and_then(|text| text.strip_suffix(']'))
        {
            inodes.insert(inode.to_owned());
        }
    }
    let mut found = Vec::new();
    for table in ["tcp", "tcp6"] {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // State 0A is LISTEN; the tenth field is the socket's inode.
            if fields.len() > 9 && fields[3] == "0A" && inodes.contains(fields[9]) {
                found.extend(address(fields[1]));
            }
        }
    }
    found
}

/// `HEX:PORT` of /proc/net/tcp[6]: four-byte groups in the machine's order.
fn address(text: &str) -> Option<String> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let bytes: Vec<u8> = (0..ip.len() / 2).filter_map(|i| u8::from_str_radix(&ip[2 * i..2 * i + 2], 16).ok()).collect();
    let swapped: Vec<u8> = bytes.chunks(4).flat_map(|group| group.iter().rev().copied()).collect();
    match swapped.len() {
        4 => Some(format!("{}.{}.{}.{}:{port}", swapped[0], swapped[1], swapped[2], swapped[3])),
        16 => {
            let octets: [u8; 16] = swapped.try_into().ok()?;
            Some(format!("[{}]:{port}", std::net::Ipv6Addr::from(octets)))
        }
        _ => None,
    }
}
