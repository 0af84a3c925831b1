//! Takes away host names whose app is gone, with their certificates, and challenges that are over.

use std::sync::Arc;

use godwit_api::{ApiError, keys};
use godwit_base::clock;
use godwit_store::{Compare, Op, Txn};

use crate::control::Control;

pub async fn tidy(control: Arc<Control>) -> Result<(), ApiError> {
    let now_ms = clock::unix_ms();
    let (orphans, over) = {
        let world = control.world();
        let orphans: Vec<_> = world.hostnames.values().filter(|row| world.is_hostname_orphan(row)).cloned().collect();
        let over = world.challenges.iter().filter(|(_, (until_ms, _))| *until_ms < now_ms);
        let over: Vec<_> = over.map(|(hostname, (_, revision))| (hostname.clone(), *revision)).collect();
        (orphans, over)
    };
    for row in orphans {
        if control.delete_hostname(&row).await? {
            tracing::info!(hostname = %row.hostname, app = %row.app, "a host name went with its app");
        }
    }
    for (hostname, revision) in over {
        let key = keys::challenge(&hostname);
        control.commit(Txn::of([Op::delete(key.clone())]).when(Compare::unchanged(key, revision))).await?;
    }
    Ok(())
}
