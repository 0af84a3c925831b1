//! Why a log holds no line of a Machine's own.

use godwit_api::AppName;
use godwit_api::machine::{Machine, MachineState};

/// In one sentence, with what to do next.
pub fn why(app: &AppName, machine: &Machine) -> String {
    let id = &machine.id;
    let ran = machine.events.iter().any(|event| event.kind == "start" && event.status == "started");
    let came = machine.events.iter().any(|event| event.kind == "migrate");
    let state = machine.state.as_str();
    match machine.state {
        MachineState::Destroyed => format!("Machine {id} is destroyed, and its output with it."),
        _ if came => {
            format!(
                "Machine {id} was moved from another host: its output there is gone, and it has written nothing here."
            )
        }
        MachineState::Started => format!(
            "Machine {id} runs and has written nothing to its standard output or error; programs that write to files, or buffer, do so."
        ),
        _ if !ran => format!(
            "Machine {id} is {state} and has never run: nothing could be written; `godwit machine status {id} -a {app}` says why."
        ),
        _ => format!("Machine {id} is {state}; it ran and wrote nothing."),
    }
}
