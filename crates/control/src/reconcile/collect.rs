//! Deletes images that have neither a name nor a Machine.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use godwit_oci::Digest;

use crate::control::Control;

const COLLECT_INTERVAL: Duration = Duration::from_secs(60);

pub async fn images(control: Arc<Control>) {
    loop {
        // First the wait: what a start finds may be about to be named.
        tokio::time::sleep(COLLECT_INTERVAL.min(control.config.image_grace.max(Duration::from_secs(1)))).await;
        let control = control.clone();
        let collected = tokio::task::spawn_blocking(move || {
            let named = control.images.images().into_iter().filter(|info| !info.tags.is_empty());
            let mut kept: BTreeSet<Digest> = named.map(|info| info.id.digest).collect();
            kept.extend(control.images_in_use().iter().filter_map(|digest| digest.parse::<Digest>().ok()));
            control.images.collect(&kept, SystemTime::now(), control.config.image_grace)
        });
        match collected.await {
            Ok(Ok(done)) if !done.blobs.is_empty() => {
                tracing::info!(blobs = done.blobs.len(), freed_bytes = done.freed_bytes, "images collected");
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = godwit_base::telemetry::chain(&error), "images could not be collected");
            }
            Err(_) => tracing::warn!("the collection of images ended unexpectedly"),
        }
    }
}
