//! Machines made on a host that the command names, and clones that are registered as their first Machine is.

use crate::cli::stderr;
use crate::control::Fleet;

#[test]
fn run_create_and_clone_place_a_machine_on_the_host_that_is_named() {
    let fleet = Fleet::start(3);
    fleet.ok(&["apps", "create", "shop"]);
    let hosts: Vec<String> = fleet.agents.iter().map(|agent| agent.id.to_string()).collect();
    let of = |name: &str| fleet.json(&["machine", "status", name, "-a", "shop"])["host_id"].clone();
    for (verb, name) in [("run", "one"), ("run", "two"), ("create", "three")] {
        fleet.ok(&["machine", verb, "x-base", "-a", "shop", "-n", name, "--host", &hosts[1]]);
        assert_eq!(of(name), hosts[1].as_str(), "{verb}");
    }
    fleet.ok(&["machine", "clone", "one", "-a", "shop", "-n", "four", "--host", &hosts[2]]);
    assert_eq!(of("four"), hosts[2].as_str());
    fleet.ok(&["host", "cordon", &hosts[0]]);
    let refused = fleet.run(&["machine", "run", "x-base", "-a", "shop", "--host", &hosts[0]]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("is cordoned"), "{}", stderr(&refused));
}

#[test]
fn a_clone_takes_requests_only_if_its_first_machine_does() {
    let fleet = Fleet::start(1);
    fleet.ok(&["apps", "create", "shop"]);
    let serve = ["--port", "80:8080/tcp:http"];
    fleet.ok(&[&["machine", "run", "x-base", "-a", "shop", "-n", "blue"][..], &serve].concat());
    let hidden = ["machine", "run", "x-base", "-a", "shop", "-n", "green", "--skip-service-registration"];
    fleet.ok(&[&hidden[..], &serve].concat());
    for (first, clone, is_out) in [("blue", "blue2", false), ("green", "green2", true)] {
        let told = fleet.ok(&["machine", "clone", first, "-a", "shop", "-n", clone]);
        assert_eq!(stderr(&told).contains("left out of the app's routes"), is_out, "{}", stderr(&told));
        let made = fleet.json(&["machine", "status", clone, "-a", "shop"]);
        assert_eq!(made["cordoned"], is_out, "{made}");
    }
    fleet.ok(&["machine", "uncordon", "green", "-a", "shop"]);
    fleet.ok(&["machine", "clone", "green", "-a", "shop", "-n", "green3"]);
    assert_eq!(fleet.json(&["machine", "status", "green3", "-a", "shop"])["cordoned"], false);
}
