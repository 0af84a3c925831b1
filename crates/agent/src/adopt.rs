//! After a start of the agent: clears away what no Machine of the journal owns, asks the driver what became of every
//! Machine, and tells the engine. It touches nothing that runs.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;

use godwit_api::ids::MachineId;
use godwit_base::backoff::Backoff;
use godwit_base::telemetry::chain;
use godwit_driver::Found;
use godwit_machine::{Adopted, Event};

use crate::effects::{Effects, exit_event};
use crate::engine::Input;
use crate::organs::Organs;
use crate::owner::Inputs;

/// Machines that are asked after at the same time.
const PARALLEL: usize = 16;
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// `rebooted`: as the engine found when it read the journal.
pub async fn adopt(effects: Effects, inputs: Inputs, machines: Vec<MachineId>, rebooted: bool) {
    let found = stream::iter(machines).map(|machine| {
        let (effects, inputs) = (effects.clone(), inputs.clone());
        async move {
            let found = find(&effects, &machine).await;
            tracing::info!(%machine, ?found, rebooted, "found again");
            inputs.send(Input::Machine { machine, event: Event::Adopted { found, rebooted } }).await;
        }
    });
    found.buffer_unordered(PARALLEL).collect::<()>().await;
}

/// Asks until there is an answer: what a Machine is about cannot be guessed.
async fn find(effects: &Effects, machine: &MachineId) -> Adopted {
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    // A volume has no process: nothing of a driver's lies under its number, and so it is answered.
    loop {
        match effects.find(machine).await {
            Ok(Found::Nothing) => return Adopted::Nothing,
            Ok(Found::Running(handle)) => return Adopted::Running { run: handle.instance },
            Ok(Found::Exited(exit)) => {
                let event = exit_event(&exit);
                return match exit.lost {
                    Some(_) => Adopted::Lost { run: exit.instance, exit: event },
                    None => Adopted::Exited { run: exit.instance, exit: event },
                };
            }
            Err(error) => {
                tracing::warn!(%machine, error = chain(&error), "cannot find out what became of it");
                tokio::time::sleep(backoff.next_wait()).await;
            }
        }
    }
}

/// Removes leftovers of crashes, by exact id. Must end before anybody can ask for a new Machine, which it would not
/// know.
pub async fn sweep(organs: &Organs, machines: &[MachineId]) {
    let ids: Vec<String> = machines.iter().map(|id| id.as_str().to_owned()).collect();
    let known: BTreeSet<String> = ids.iter().cloned().collect();
    match organs.driver.sweep(&ids).await {
        Ok(swept) => {
            if !swept.removed.is_empty() {
                tracing::info!(machines = ?swept.removed, "leftovers removed");
            }
            for machine in swept.strangers {
                tracing::error!(machine, "runs here, but the journal does not know it; it is left alone");
            }
        }
        Err(error) => tracing::warn!(error = chain(&error), "leftovers of the driver remain"),
    }
    match organs.network.sweep(&known).await {
        Ok(removed) if !removed.is_empty() => tracing::info!(machines = ?removed, "leftover networks removed"),
        Ok(_) => {}
        Err(error) => tracing::warn!(error = chain(&error), "leftover networks remain"),
    }
}
