//! The door's conversation with its agent, spoken by a door that the test is.

use std::collections::BTreeMap;

use bytes::Bytes;
use godwit_api::Method;
use godwit_api::door::{
    AGENT_MACHINES, AgentStart, AgentStartReply, AgentStopIfIdle, DoorEdge, DoorMachine, DoorUpdate, Drained, Refusal,
};
use godwit_api::ids::MachineId;
use godwit_api::machine::{Acknowledged, MachineState};
use godwit_api::row::{EdgeRow, Placement};
use godwit_base::http::client::{Client, empty};
use godwit_store::{Txn, put_json};
use http_body_util::BodyExt;

use crate::control::Control;
use crate::host::{DEADLINE, Host};

pub struct Door {
    pub client: Client,
    body: hyper::body::Incoming,
    unread: Vec<u8>,
    pub machines: BTreeMap<MachineId, DoorMachine>,
    edges: Vec<DoorEdge>,
    ticks: u32,
}

impl Door {
    pub async fn connect(host: &Host) -> Self {
        let client = Client::unix(&host.dir.join("door.sock"));
        let answer = client.send(AGENT_MACHINES, http::Request::new(empty()), DEADLINE).await.unwrap();
        let (machines, edges) = (BTreeMap::new(), Vec::new());
        let mut door = Self { client, body: answer.into_body(), unread: Vec::new(), machines, edges, ticks: 0 };
        door.update().await;
        door
    }

    async fn line(&mut self) -> Bytes {
        loop {
            if let Some(end) = self.unread.iter().position(|b| *b == b'\n') {
                return self.unread.drain(..=end).collect::<Vec<_>>().into();
            }
            let frame = tokio::time::timeout(DEADLINE, self.body.frame()).await.unwrap().unwrap().unwrap();
            self.unread.extend_from_slice(frame.data_ref().unwrap());
        }
    }

    async fn update(&mut self) {
        match serde_json::from_slice(&self.line().await).unwrap() {
            DoorUpdate::Snapshot { machines, edges } => {
                self.machines = machines.into_iter().map(|m| (m.machine.clone(), m)).collect();
                self.edges = edges;
            }
            DoorUpdate::Machine { machine } => drop(self.machines.insert(machine.machine.clone(), machine)),
            DoorUpdate::Gone { machine, .. } => drop(self.machines.remove(&machine)),
            DoorUpdate::Edges { edges } => self.edges = edges,
            DoorUpdate::Tick => self.ticks += 1,
        }
    }

    async fn until(&mut self, condition: impl Fn(&Self) -> bool) {
        while !condition(self) {
            self.update().await;
        }
    }

    async fn until_state(&mut self, placement: &Placement, state: MachineState) {
        let id = placement.machine.clone();
        self.until(|door| door.machines.get(&id).is_some_and(|machine| machine.state == state)).await;
    }

    async fn start(&self, placement: &Placement) -> AgentStartReply {
        let path = format!("{AGENT_MACHINES}/{}/start", placement.machine);
        let call = AgentStart { epoch: placement.epoch };
        self.client.json(Method::Post, &path, Some(&call), DEADLINE).await.unwrap()
    }

    async fn stop_if_idle(&self, placement: &Placement) -> bool {
        let path = format!("{AGENT_MACHINES}/{}/stop-if-idle", placement.machine);
        let call = AgentStopIfIdle { epoch: placement.epoch };
        self.client.json::<_, Acknowledged>(Method::Post, &path, Some(&call), DEADLINE).await.unwrap().ok
    }
}

#[tokio::test]
async fn a_door_hears_everything_and_starts_machines() {
    let control = Control::start().await;
    let host = Host::started(&control).await;
    let mut door = Door::connect(&host).await;
    let placement = host.placement(1, 1);
    control.put(&placement).await;
    door.until_state(&placement, MachineState::Started).await;
    door.until(|door| door.ticks >= 1).await;

    assert!(door.stop_if_idle(&placement).await);
    let id = placement.machine.clone();
    door.until(|door| door.machines[&id].closing.is_some()).await;
    let token = door.machines[&id].closing.as_ref().unwrap().token;
    assert_eq!(host.driver.signals(&host.machine_dir(&id)), [] as [i32; 0], "no signal before the door has drained");
    let path = format!("{AGENT_MACHINES}/{id}/drained");
    let call = Drained { token, cut_off: 0 };
    let _: Acknowledged = door.client.json(Method::Post, &path, Some(&call), DEADLINE).await.unwrap();
    door.until_state(&placement, MachineState::Stopped).await;
    assert!(!door.stop_if_idle(&placement).await, "what is stopped is not stopped again");

    let starts = (0..50).map(|_| door.start(&placement));
    let replies = futures_util::future::join_all(starts).await;
    assert!(replies.iter().all(|reply| *reply == AgentStartReply::Started), "{replies:?}");
    assert_eq!(host.driver.starts(id.as_str()), 2, "one start, however many ask");
    door.until_state(&placement, MachineState::Started).await;

    // Whoever connects now finds it running, closed to nobody.
    let late = Door::connect(&host).await;
    assert_eq!(late.machines[&id].state, MachineState::Started);
    assert!(late.machines[&id].closing.is_none());
}

#[tokio::test]
async fn a_door_that_never_drains_holds_a_stop_up_for_a_bounded_time_only() {
    let control = Control::start().await;
    let host = Host::started(&control).await;
    let placement = host.placement(1, 1);
    host.launched(&placement).await;
    let mut door = Door::connect(&host).await;
    host.call_stop(&placement).await.unwrap();
    door.until_state(&placement, MachineState::Stopped).await;
}

#[tokio::test]
async fn a_start_without_memory_is_full_and_a_stranger_is_unknown() {
    let control = Control::start().await;
    let host = Host::started(&control).await;
    let (mut first, mut second) = (host.placement(1, 1), host.placement(2, 1));
    first.config.guest.memory_mb = 800;
    second.config.guest.memory_mb = 800;
    second.launch = false;
    host.launched(&first).await;
    control.put(&second).await;
    host.told(&second, MachineState::Stopped).await;
    let door = Door::connect(&host).await;
    let full = AgentStartReply::Refused { refusal: Refusal::Full, epoch: Some(second.epoch) };
    assert_eq!(door.start(&second).await, full);
    let unknown = AgentStartReply::Refused { refusal: Refusal::Unknown, epoch: None };
    assert_eq!(door.start(&host.placement(9, 1)).await, unknown);
    let knobs = godwit_driver::fake::Knobs { start_fails: Some((127, "no such program".into())), ..Default::default() };
    host.driver.set(second.machine.as_str(), knobs);
    host.call_stop(&first).await.unwrap();
    host.told(&first, MachineState::Stopped).await;
    let failed = door.start(&second).await;
    assert!(matches!(&failed, AgentStartReply::Failed { error } if error.contains("no such program")), "{failed:?}");
}

#[tokio::test]
async fn a_door_knows_its_edges_also_while_control_is_away() {
    let control = Control::start().await;
    let mut host = Host::started(&control).await;
    let id = godwit_api::EdgeId::parse("edge-1").unwrap();
    let row = EdgeRow { id: id.clone(), region: "fra".into(), key_sha256: "ab".into(), joined_at_ms: 1 };
    control.store.txn(Txn::of([put_json(godwit_api::keys::edge(&id), &row).unwrap()])).await.unwrap();
    let mut door = Door::connect(&host).await;
    door.until(|door| !door.edges.is_empty()).await;
    drop(door);
    control.stop().await;
    host.restart().await;
    let door = Door::connect(&host).await;
    assert_eq!(door.edges, [DoorEdge { id, key_sha256: "ab".into() }]);
}
