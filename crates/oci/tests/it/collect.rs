//! What is collected, what never is, and what happens when both are tried at once.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use godwit_oci::{Collected, ContentStore, Digest, no_progress};

use crate::support::*;

fn collect(store: &ContentStore, in_use: &[Digest]) -> Collected {
    let in_use: BTreeSet<Digest> = in_use.iter().copied().collect();
    store.collect(&in_use, SystemTime::now(), Duration::ZERO).unwrap()
}

fn shared() -> Vec<u8> {
    Layer::new().file("shared", &[b's'; 4000]).done()
}

fn image(name: &str) -> Image {
    Image::new([shared(), Layer::new().file(name, name.as_bytes()).done()])
}

#[test]
fn unused_images_go_and_shared_layers_stay() {
    let test = TestStore::new();
    let (one, two) = (load(&test.store, &image("one")).unwrap(), load(&test.store, &image("two")).unwrap());
    drop(test.store.unpack_blocking(&one, &no_progress()).unwrap());
    drop(test.store.unpack_blocking(&two, &no_progress()).unwrap());
    let strange = test.dir.path().join("store/blobs/sha256/README");
    std::fs::write(&strange, "not ours").unwrap();

    let done = collect(&test.store, &[one, two]);
    assert_eq!(done, Collected::default());
    let done = collect(&test.store, &[two]);
    assert_eq!(done.images.iter().map(|image| image.digest).collect::<Vec<_>>(), [one]);
    // Manifest, configuration and the one layer that is not shared.
    assert_eq!((done.blobs.len(), done.layers.len()), (3, 1));
    assert!(done.freed_bytes > 0);
    let unpacked = test.store.unpack_blocking(&two, &no_progress()).unwrap();
    assert!(find(&unpacked, "shared").is_some() && find(&unpacked, "two").is_some());
    assert_eq!(test.store.resolve("t").unwrap().unwrap().digest, two);

    // In use by a value that lives, whatever the caller says.
    assert_eq!(collect(&test.store, &[]), Collected::default());
    drop(unpacked);
    let done = collect(&test.store, &[]);
    assert_eq!((done.images.len(), done.layers.len()), (1, 2));
    assert!(strange.exists(), "a name that we did not write is left alone");
    std::fs::remove_file(strange).unwrap();
    assert_eq!(test.leftovers(), Vec::<String>::new());
}

#[test]
fn what_was_just_used_has_its_grace() {
    let test = TestStore::new();
    let digest = load(&test.store, &image("x")).unwrap();
    let (none, grace) = (BTreeSet::new(), Duration::from_secs(3600));
    let now = SystemTime::now();
    assert_eq!(test.store.collect(&none, now, grace).unwrap(), Collected::default());
    // A clock that was set back does not make things old.
    assert_eq!(test.store.collect(&none, now - grace * 9, grace).unwrap(), Collected::default());
    let done = test.store.collect(&none, now + grace * 2, grace).unwrap();
    assert_eq!(done.images[0].digest, digest);
}

#[test]
fn an_image_in_use_needs_no_name() {
    let test = TestStore::new();
    let digest = load(&test.store, &image("x")).unwrap();
    let id = test.store.images()[0].id.clone();
    test.store.remove(&id).unwrap();
    assert_eq!(collect(&test.store, &[digest]), Collected::default());
    drop(test.store.unpack_blocking(&digest, &no_progress()).unwrap());
    assert!(!collect(&test.store, &[]).blobs.is_empty());
}

#[test]
fn an_image_in_use_that_cannot_be_read_stops_everything() {
    let test = TestStore::new();
    let (one, two) = (load(&test.store, &image("one")).unwrap(), load(&test.store, &image("two")).unwrap());
    let before = test.leftovers();
    std::fs::write(test.dir.path().join("store/blobs/sha256").join(one.hex()), "rotten").unwrap();
    let in_use = BTreeSet::from([one]);
    let error = test.store.collect(&in_use, SystemTime::now(), Duration::ZERO).unwrap_err();
    assert!(chain(&error).contains(&one.to_string()), "{}", chain(&error));
    assert_eq!(test.leftovers(), before);
    assert!(test.store.resolve(&format!("t@{two}")).unwrap().is_some());
}

#[test]
fn a_collector_that_never_rests_takes_nothing_from_those_at_work() {
    let test = TestStore::new();
    let images: Vec<Image> = (0..3).map(|n| image(&format!("image{n}"))).collect();
    let stop = AtomicBool::new(false);
    let collected = std::thread::scope(|scope| {
        let collector = scope.spawn(|| {
            let mut blobs = 0;
            while !stop.load(Ordering::Relaxed) {
                blobs += collect(&test.store, &[]).blobs.len();
            }
            blobs
        });
        let workers: Vec<_> = (0..3)
            .map(|worker| {
                let (test, images) = (&test, &images);
                scope.spawn(move || {
                    for round in 0..25 {
                        let number = (worker + round) % images.len();
                        // Loaded, but perhaps gone again before it is used: then it is
                        // missing as a whole, and loading it again is all there is to do.
                        let digest = load(&test.store, &images[number]).unwrap();
                        let Ok(unpacked) = test.store.unpack_blocking(&digest, &no_progress()) else { continue };
                        let name = format!("image{number}");
                        assert_eq!(std::fs::read(find(&unpacked, &name).unwrap()).unwrap(), name.as_bytes());
                        assert_eq!(std::fs::read(find(&unpacked, "shared").unwrap()).unwrap().len(), 4000);
                        assert!(test.store.config(&digest).is_ok());
                        assert!(
                            test.store.manifest(&digest).unwrap().layers.iter().all(|l| test
                                .store
                                .open_blob(&l.digest)
                                .unwrap()
                                .is_some())
                        );
                    }
                })
            })
            .collect();
        let ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        stop.store(true, Ordering::Relaxed);
        let collected = collector.join().unwrap();
        ended.into_iter().for_each(|ended| ended.unwrap());
        collected
    });
    assert!(collected > 0, "the collector never had anything to do");
    collect(&test.store, &[]);
    assert_eq!(test.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_under_a_collector_ends_whole() {
    let from = TestStore::new();
    let digests: Vec<Digest> = (0..6).map(|n| load(&from.store, &image(&format!("image{n}"))).unwrap()).collect();
    let server = crate::pull::Server::start(from.store.clone()).await;
    let to = TestStore::new();
    let puller = godwit_oci::Puller::new(&format!("http://{}", server.address), None).unwrap();
    let stop = std::sync::Arc::new(AtomicBool::new(false));
    let collector = {
        let (store, stop) = (to.store.clone(), stop.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                collect(&store, &[]);
            }
        })
    };
    for round in 0..5 {
        for digest in &digests {
            // What a host does: it holds the image from before the pull until it runs.
            let lease = to.store.lease([*digest]);
            puller.pull(&to.store, "t", digest, no_progress()).await.unwrap();
            let unpacked = to.store.unpack(digest, no_progress()).await;
            let unpacked = unpacked.unwrap_or_else(|error| panic!("round {round}: {}", chain(&error)));
            assert!(find(&unpacked, "shared").is_some());
            drop(lease);
        }
    }
    stop.store(true, Ordering::Relaxed);
    collector.join().unwrap();
}
