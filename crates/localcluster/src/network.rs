//! A bridge per cluster, a network namespace per node, and partitions between them.
//!
//! Everything of a cluster derives from its slot, so that several run side by side. Links carry the cluster's folder
//! as their alias and firewall rules its tag as their comment: leftovers are found by these, not by a record.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::{machine, process};

/// How many clusters one machine can hold.
const SLOTS: u8 = 16;
const LINKS: &str = "/sys/class/net";

/// What a cluster's cgroups and firewall rules are called: the same for one folder, different between folders.
pub(crate) fn tag(folder: &Path) -> String {
    let digest = hex::encode(Sha256::digest(folder.as_os_str().as_encoded_bytes()));
    format!("flywheel-{}", digest.get(..8).unwrap_or_default())
}

/// The addresses and names of one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network {
    slot: u8,
}

impl Network {
    pub(crate) fn of(slot: u8) -> Network {
        Network { slot }
    }

    pub(crate) fn bridge(self) -> String {
        format!("flyb{}", self.slot)
    }

    /// The host's end of a node's cable.
    pub(crate) fn cable(self, index: u8) -> String {
        format!("flyv{}-{index}", self.slot)
    }

    /// The machine's own address on the bridge: API server, DNS, object store.
    pub(crate) fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 250, self.slot, 1)
    }

    pub(crate) fn node(self, index: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 250, self.slot, 10u8.saturating_add(index))
    }

    pub(crate) fn services(self) -> (Ipv4Addr, u8) {
        (Ipv4Addr::new(10, 249, 16 * self.slot, 0), 20)
    }

    /// 1,024 ranges of 256 addresses, one per node.
    pub(crate) fn pods(self) -> (Ipv4Addr, u8) {
        (Ipv4Addr::new(10, 64 + 4 * self.slot, 0, 0), 14)
    }

    /// Takes a free slot by making its bridge, which only one process can. `record` is told each slot beforehand.
    pub(crate) fn claim(folder: &Path, mut record: impl FnMut(u8) -> Result<()>) -> Result<Network> {
        let routes = taken_ranges()?;
        let mut reasons = vec![];
        for network in (0..SLOTS).map(Network::of) {
            let bridge = network.bridge();
            if link_exists(&bridge) {
                reasons.push(format!(
                    "{bridge} belongs to {}",
                    alias(&bridge).unwrap_or_else(|| "somebody".into())
                ));
                continue;
            }
            let ours = [(network.gateway(), 24), network.services(), network.pods()];
            if let Some(other) = routes
                .iter()
                .find(|other| ours.iter().any(|range| overlap(*range, **other)))
            {
                reasons.push(format!(
                    "{bridge} would hide the machine's route to {}/{}",
                    other.0, other.1
                ));
                continue;
            }
            record(network.slot)?;
            if let Err(error) = ip(&["link", "add", "name", &bridge, "type", "bridge"]) {
                if link_exists(&bridge) {
                    continue;
                }
                return Err(error);
            }
            network.set_up_bridge(folder)?;
            return Ok(network);
        }
        Err(Error::Usage(format!(
            "no address range is left for another cluster: {}; end one with `flywheel-localcluster down --name NAME`",
            reasons.join("; ")
        )))
    }

    fn set_up_bridge(self, folder: &Path) -> Result<()> {
        let bridge = self.bridge();
        set_alias(&bridge, folder)?;
        ip(&["addr", "add", &format!("{}/24", self.gateway()), "dev", &bridge])?;
        ip(&["link", "set", &bridge, "up"])?;
        // Forwarding for this bridge alone: the machine's own setting stays as it is.
        let switch = format!("/proc/sys/net/ipv4/conf/{bridge}/forwarding");
        fs::write(&switch, "1").map_err(Error::io(format!("writing {switch}")))?;
        for chain in ["FORWARD", "INPUT"] {
            let tag = tag(folder);
            iptables(&[
                "-I",
                chain,
                "-i",
                &bridge,
                "-m",
                "comment",
                "--comment",
                &tag,
                "-j",
                "ACCEPT",
            ])?;
        }
        Ok(())
    }

    /// Lays the cable between the bridge and the network namespace of the process `holder`.
    pub(crate) fn connect(self, folder: &Path, index: u8, holder: i32) -> Result<()> {
        let cable = self.cable(index);
        ip(&[
            "link",
            "add",
            &cable,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            &holder.to_string(),
        ])?;
        set_alias(&cable, folder)?;
        ip(&["link", "set", &cable, "master", &self.bridge(), "up"])?;
        let address = format!("{}/24", self.node(index));
        let gateway = self.gateway().to_string();
        for arguments in [
            &["addr", "add", &address, "dev", "eth0"][..],
            &["link", "set", "eth0", "up"],
            &["route", "add", "default", "via", &gateway],
        ] {
            process::run(inside(holder, "ip").args(arguments))?;
        }
        Ok(())
    }

    /// Sends what goes to `range` through a node.
    pub(crate) fn route(self, range: &str, index: u8) -> Result<()> {
        ip(&[
            "route",
            "replace",
            range,
            "via",
            &self.node(index).to_string(),
            "dev",
            &self.bridge(),
        ])
    }

    /// Takes a node off the network; what runs on it runs on.
    pub(crate) fn cut(self, index: u8) -> Result<()> {
        ip(&["link", "set", &self.cable(index), "nomaster"])
    }

    pub(crate) fn heal(self, index: u8) -> Result<()> {
        ip(&["link", "set", &self.cable(index), "master", &self.bridge()])
    }

    /// Drops all that the node and its pods send to the API server; everything else they reach.
    pub(crate) fn cut_api(self, holder: i32, port: u16) -> Result<()> {
        self.heal_api(holder, port)?;
        for chain in ["OUTPUT", "FORWARD"] {
            process::run(
                inside(holder, "iptables")
                    .args(["-w", "-I", chain])
                    .args(self.api_rule(port)),
            )?;
        }
        Ok(())
    }

    pub(crate) fn heal_api(self, holder: i32, port: u16) -> Result<()> {
        for chain in ["OUTPUT", "FORWARD"] {
            let there = |holder| {
                process::run(
                    inside(holder, "iptables")
                        .args(["-w", "-C", chain])
                        .args(self.api_rule(port)),
                )
                .is_ok()
            };
            while there(holder) {
                process::run(
                    inside(holder, "iptables")
                        .args(["-w", "-D", chain])
                        .args(self.api_rule(port)),
                )?;
            }
        }
        Ok(())
    }

    fn api_rule(self, port: u16) -> Vec<String> {
        let (address, port) = (self.gateway().to_string(), port.to_string());
        ["-d", &address, "-p", "tcp", "--dport", &port, "-j", "DROP"]
            .map(str::to_owned)
            .to_vec()
    }
}

/// Removes every rule and link of the cluster in `folder`; `slot` is the one it last tried to take.
pub(crate) fn remove(folder: &Path, slot: Option<u8>) -> Result<()> {
    let tag = tag(folder);
    if machine::find("iptables").is_some() {
        for rule in iptables(&["-S"])?.lines().filter(|rule| rule.contains(&tag)) {
            let words: Vec<String> = rule
                .split_whitespace()
                .map(|word| word.trim_matches('"').to_owned())
                .collect();
            let Some(("-A", rest)) = words.split_first().map(|(first, rest)| (first.as_str(), rest)) else {
                continue;
            };
            process::run(program("iptables").args(["-w", "-D"]).args(rest))?;
        }
    }
    const WITHIN: Duration = Duration::from_secs(15);
    let deadline = Instant::now() + WITHIN;
    loop {
        let ours: Vec<String> = links().into_iter().filter(|link| is_ours(link, folder, slot)).collect();
        let Some(first) = ours.first() else { return Ok(()) };
        for link in &ours {
            // The kernel may take a cable away in the same moment: its other end's namespace has ended.
            let _ = ip(&["link", "del", link]);
        }
        if Instant::now() > deadline {
            return Err(Error::Usage(format!(
                "the link {first} does not go; `ip link del {first}` says why"
            )));
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn is_ours(link: &str, folder: &Path, slot: Option<u8>) -> bool {
    match alias(link) {
        Some(owner) => owner == folder.to_string_lossy(),
        // We were killed between making the link and naming its owner.
        None => slot.is_some_and(|slot| {
            link == Network::of(slot).bridge() || link.strip_prefix(&format!("flyv{slot}-")).is_some()
        }),
    }
}

fn links() -> Vec<String> {
    let entries = fs::read_dir(LINKS).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("fly"))
        .collect()
}

fn link_exists(link: &str) -> bool {
    Path::new(LINKS).join(link).exists()
}

/// Whose a link is; a new link has no alias for a moment.
fn alias(link: &str) -> Option<String> {
    let text = fs::read_to_string(Path::new(LINKS).join(link).join("ifalias")).ok()?;
    Some(text.trim().to_owned()).filter(|owner| !owner.is_empty())
}

fn set_alias(link: &str, folder: &Path) -> Result<()> {
    let file = Path::new(LINKS).join(link).join("ifalias");
    fs::write(&file, folder.as_os_str().as_encoded_bytes()).map_err(Error::path("writing", &file))
}

/// A command in the network namespace of the process `holder`.
fn inside(holder: i32, name: &str) -> Command {
    let mut command = program("nsenter");
    command.arg(format!("--net=/proc/{holder}/ns/net")).arg("--");
    command.arg(machine::find(name).unwrap_or_else(|| name.into()));
    command
}

fn program(name: &str) -> Command {
    Command::new(machine::find(name).unwrap_or_else(|| name.into()))
}

fn ip(arguments: &[&str]) -> Result<()> {
    process::run(program("ip").args(arguments)).map(drop)
}

fn iptables(arguments: &[&str]) -> Result<String> {
    process::run(program("iptables").arg("-w").args(arguments))
}

/// The ranges that the machine already has routes to, without the default route.
fn taken_ranges() -> Result<Vec<(Ipv4Addr, u8)>> {
    let text = process::run(program("ip").args(["-4", "-o", "route", "show"]))?;
    Ok(text
        .lines()
        .filter_map(|line| range(line.split_whitespace().next()?))
        .collect())
}

fn range(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
    Some((
        address.parse().ok()?,
        prefix.parse().ok().filter(|prefix| *prefix <= 32)?,
    ))
}

fn overlap(a: (Ipv4Addr, u8), b: (Ipv4Addr, u8)) -> bool {
    let common = a.1.min(b.1);
    let mask = u32::MAX.checked_shl(32 - u32::from(common)).unwrap_or(0);
    a.0.to_bits() & mask == b.0.to_bits() & mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_do_not_overlap() {
        let ranges: Vec<_> = (0..SLOTS)
            .map(Network::of)
            .flat_map(|network| [(network.gateway(), 24), network.services(), network.pods()])
            .collect();
        for (i, a) in ranges.iter().enumerate() {
            for b in &ranges[i + 1..] {
                assert!(!overlap(*a, *b), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn ranges_are_read_as_ip_prints_them() {
        assert_eq!(range("10.0.0.0/8"), Some((Ipv4Addr::new(10, 0, 0, 0), 8)));
        assert_eq!(range("10.1.2.3"), Some((Ipv4Addr::new(10, 1, 2, 3), 32)));
        assert_eq!(range("default"), None);
        assert!(overlap(
            (Ipv4Addr::new(10, 0, 0, 0), 8),
            (Ipv4Addr::new(10, 250, 0, 1), 24)
        ));
        assert!(!overlap(
            (Ipv4Addr::new(172, 17, 0, 0), 16),
            (Ipv4Addr::new(10, 250, 0, 1), 24)
        ));
    }

    #[test]
    fn link_names_fit_the_kernel() {
        const IFNAMSIZ: usize = 15;
        assert!(Network::of(SLOTS - 1).cable(u8::MAX).len() <= IFNAMSIZ);
    }

    #[test]
    fn tags_differ_between_folders() {
        assert_ne!(tag(Path::new("/a/default")), tag(Path::new("/b/default")));
    }
}
