//! Files that change where the folder that is read does not say so: links, replaced folders, mounts, and the system's own files.

use std::{fs, net::SocketAddr, os::unix::fs::symlink, path::Path};

use crate::harness::{daemon::forward, netns::Netns, *};

const HEAD: &str = "$TTL 60\n@ SOA ns host 1 2 3 4 60\n@ NS ns\nns A 192.0.2.53\n";

fn zone(address: &str) -> String {
    format!("{HEAD}www A {address}\n")
}

fn service(address: &str) -> String {
    format!(r#"{{"service": {{"name": "web", "port": 1, "address": "{address}"}}}}"#)
}

#[track_caller]
fn becomes(daemon: &Daemon, question: &str, address: &str) {
    wait_until(&format!("{question} {address}"), PATIENCE, || (daemon.ask(question).data() == [address]).then_some(()));
}

/// Exchanges a link in one step.
fn point(link: &Path, target: impl AsRef<Path>) {
    let new = link.with_file_name("new-link");
    symlink(target, &new).unwrap();
    fs::rename(new, link).unwrap();
}

/// A revision of all data files.
fn write_revision(folder: &Path, number: u8) {
    fs::create_dir_all(folder.join("zones")).unwrap();
    fs::create_dir_all(folder.join("consul.d")).unwrap();
    fs::write(folder.join("zones/site.example.zone"), zone(&format!("192.0.2.{number}"))).unwrap();
    fs::write(folder.join("consul.d/web.json"), service(&format!("192.0.2.{number}"))).unwrap();
    fs::write(folder.join("hosts"), format!("192.0.2.{number} host.example\n")).unwrap();
}

const CONFIG: &str = "[zones]\ndirectory = \"<DIR>/data/zones\"\nhosts = [\"<DIR>/data/hosts\"]\n\
                      [catalog]\nnode_name = \"own\"\naddress = \"192.0.2.9\"\n\
                      [catalog.files]\ndirectory = \"<DIR>/data/consul.d\"\n";

#[track_caller]
fn all_become(daemon: &Daemon, number: u8) {
    let address = format!("192.0.2.{number}");
    for question in ["www.site.example A", "web.service.consul A", "host.example A"] {
        becomes(daemon, question, &address);
    }
}

/// As git-sync does it: the folder is a link into one revision, and then into the next.
#[test]
fn a_folder_that_is_a_link_is_followed_when_the_link_is_exchanged() {
    let setup = Setup::new(&(forward(".", &[free_address()]) + CONFIG));
    let folder = setup.folder().to_owned();
    write_revision(&folder.join("rev1"), 1);
    symlink("rev1", folder.join("data")).unwrap();
    let daemon = setup.start();
    all_become(&daemon, 1);
    for number in 2..5 {
        write_revision(&folder.join(format!("rev{number}")), number);
        point(&folder.join("data"), format!("rev{number}"));
        all_become(&daemon, number);
        // What is edited after that is seen, too.
        fs::write(folder.join("data/zones/site.example.zone"), zone("192.0.2.77")).unwrap();
        becomes(&daemon, "www.site.example A", "192.0.2.77");
        fs::write(folder.join("data/consul.d/web.json"), service("192.0.2.78")).unwrap();
        becomes(&daemon, "web.service.consul A", "192.0.2.78");
        fs::remove_dir_all(folder.join(format!("rev{}", number - 1))).unwrap();
    }
}

/// As Kubernetes does it in the folder of a ConfigMap: each file links through `..data`, which is exchanged.
#[test]
fn files_that_link_through_a_folder_change_with_that_link() {
    let setup = Setup::new(&(forward(".", &[free_address()]) + CONFIG));
    let folder = setup.folder().to_owned();
    let data = folder.join("data");
    for kind in ["zones", "consul.d"] {
        fs::create_dir_all(data.join(kind)).unwrap();
    }
    let put = |number: u8| {
        for (kind, file, text) in [
            ("zones", "site.example.zone", zone(&format!("192.0.2.{number}"))),
            ("consul.d", "web.json", service(&format!("192.0.2.{number}"))),
        ] {
            let version = data.join(kind).join(format!("..v{number}"));
            fs::create_dir(&version).unwrap();
            fs::write(version.join(file), text).unwrap();
            point(&data.join(kind).join("..data"), format!("..v{number}"));
        }
    };
    put(1);
    symlink("..data/site.example.zone", data.join("zones/site.example.zone")).unwrap();
    symlink("..data/web.json", data.join("consul.d/web.json")).unwrap();
    let daemon = setup.start();
    for number in 1..4 {
        let address = format!("192.0.2.{number}");
        becomes(&daemon, "www.site.example A", &address);
        becomes(&daemon, "web.service.consul A", &address);
        put(number + 1);
    }
}

#[test]
fn a_folder_that_is_moved_away_and_replaced_is_watched_again() {
    let setup = Setup::new(&(forward(".", &[free_address()]) + CONFIG));
    let folder = setup.folder().to_owned();
    write_revision(&folder.join("data"), 1);
    let daemon = setup.start();
    all_become(&daemon, 1);
    for number in 2..4 {
        // The folders themselves, and then the folder in which they lie.
        for kind in ["zones", "consul.d"] {
            let (now, new) = (folder.join("data").join(kind), folder.join("new"));
            write_revision(&new, number * 10);
            fs::rename(&now, folder.join(format!("old-{kind}{number}"))).unwrap();
            fs::rename(new.join(kind), now).unwrap();
            fs::remove_dir_all(new).unwrap();
        }
        becomes(&daemon, "www.site.example A", &format!("192.0.2.{}", number * 10));
        becomes(&daemon, "web.service.consul A", &format!("192.0.2.{}", number * 10));
        write_revision(&folder.join("new"), number);
        fs::rename(folder.join("data"), folder.join(format!("old{number}"))).unwrap();
        fs::rename(folder.join("new"), folder.join("data")).unwrap();
        all_become(&daemon, number);
        // Edited in place, and by another file in their place.
        write_revision(&folder.join("data"), number + 100);
        all_become(&daemon, number + 100);
        daemon.write("data/zones/site.example.zone", &zone("192.0.2.200"));
        becomes(&daemon, "www.site.example A", "192.0.2.200");
    }
    let line = daemon.wait_for_log(0, |line| line.contains("files taken in"));
    assert!(line.contains("changed="), "{line}");
}

#[test]
fn a_file_that_links_into_another_folder_changes_with_its_target() {
    let setup = Setup::new(&(forward(".", &[free_address()]) + CONFIG));
    let folder = setup.folder().to_owned();
    write_revision(&folder.join("data"), 1);
    write_revision(&folder.join("far"), 2);
    for file in ["zones/site.example.zone", "consul.d/web.json", "hosts"] {
        point(&folder.join("data").join(file), folder.join("far").join(file));
    }
    let daemon = setup.start();
    all_become(&daemon, 2);
    write_revision(&folder.join("far"), 3); // in place
    all_become(&daemon, 3);
    for (file, text) in [
        ("far/zones/site.example.zone", zone("192.0.2.4")),
        ("far/consul.d/web.json", service("192.0.2.4")),
        ("far/hosts", "192.0.2.4 host.example\n".to_owned()),
    ] {
        daemon.write(file, &text); // replaced
    }
    all_become(&daemon, 4);
    write_revision(&folder.join("farther"), 5);
    for file in ["zones/site.example.zone", "consul.d/web.json", "hosts"] {
        point(&folder.join("data").join(file), folder.join("farther").join(file));
    }
    all_become(&daemon, 5);
    write_revision(&folder.join("farther"), 6);
    all_become(&daemon, 6);
}

/// What happens below a mount is not told by the folder in which the mount lies.
#[test]
fn a_hosts_file_that_is_a_bind_mount_is_compared() {
    if !require::root() {
        return;
    }
    let setup = Setup::new(&(forward(".", &[free_address()]) + CONFIG));
    let folder = setup.folder().to_owned();
    write_revision(&folder.join("data"), 1);
    write_revision(&folder.join("far"), 2);
    let at = folder.display();
    let script = format!("mount --bind {at}/far/hosts {at}/data/hosts; exec \"$0\" \"$@\"");
    let daemon = setup.by(&["unshare", "--mount", "sh", "-e", "-c", &script]).start();
    becomes(&daemon, "host.example A", "192.0.2.2");
    fs::write(folder.join("far/hosts"), "192.0.2.3 host.example\n").unwrap();
    becomes(&daemon, "host.example A", "192.0.2.3");
    // Another mount hides that one.
    fs::write(folder.join("far/other"), "192.0.2.4 host.example\n").unwrap();
    let enter = ["--target", &daemon.pid().to_string(), "--mount", "mount", "--bind"].map(str::to_owned);
    let paths = [folder.join("far/other"), folder.join("data/hosts")];
    run(std::process::Command::new("nsenter").args(enter).args(paths));
    becomes(&daemon, "host.example A", "192.0.2.4");
}

#[test]
fn the_upstreams_of_the_system_are_followed() {
    let Some(netns) = Netns::new("# not filled yet\n") else { return };
    let at = |port| SocketAddr::new(netns.host(), port);
    let (first, second) = (Upstream::at(at(53), upstream::saying("192.0.2.1")), netns.host());
    let daemon = Setup::new("[server]\nlisten = [\"127.0.0.1:53\"]\n").within(&netns).start();
    let ask = |name: &str| run(netns.command("dig").args(["+short", "+tries=1", "@127.0.0.1", name, "A"]));
    daemon.wait_for_log(0, |line| line.contains("no upstream for names"));
    assert_eq!(ask("early.example"), "");
    let from = daemon.log_length();
    netns.set_resolv_conf(&format!("nameserver {second}\n"));
    daemon.wait_for_log(from, |line| line.contains("upstreams taken from the system"));
    assert_eq!(ask("www.example").trim(), "192.0.2.1");
    // While it is empty, or names ourselves alone, the last ones stay; also over a reload.
    for text in ["", "nameserver 127.0.0.1\n"] {
        netns.set_resolv_conf(text);
        assert!(daemon.reload().contains("reloaded"));
        assert_eq!(ask(&format!("while{}.example", text.len())).trim(), "192.0.2.1");
    }
    // A further server is asked without SIGHUP.
    let from = daemon.log_length();
    netns.set_resolv_conf(&format!("nameserver 203.0.113.1\nnameserver {second}\n"));
    daemon.wait_for_log(from, |line| line.contains("upstreams taken from the system"));
    assert!(first.asked().len() >= 3);
    drop(daemon);
}
