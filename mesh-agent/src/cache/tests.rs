use std::{
    fs,
    os::unix::fs::PermissionsExt,
    time::{Duration, UNIX_EPOCH},
};

use mesh_api::{ADDRESS_TYPE, AUTHORIZATION_TYPE, MESH_CONFIG_TYPE};
use proptest::prelude::*;
use tokio::{sync::watch, time::timeout};

use super::{image::ImageError, *};
use crate::{private::tests::Scratch, view::Refusal};

const SOON: Duration = Duration::from_secs(10);

fn owner() -> Owner {
    Owner { node: "node-a".into(), control: "https://10.0.0.1:15012".into() }
}

fn held(name: &str, version: &str, value: &[u8]) -> Held {
    Held { name: name.into(), version: version.into(), value: value.into() }
}

fn kind(type_url: &str, held: &[Held]) -> Kind {
    Kind { type_url: type_url.into(), held: held.into() }
}

fn small() -> Contents {
    let kinds = vec![
        kind(AUTHORIZATION_TYPE, &[held("default/bad", "", b"policy")]),
        kind(ADDRESS_TYPE, &[held("web", "1", b"address")]),
    ];
    Contents { node: owner().node, control: owner().control, saved_at: 1_700_000_000, kinds }
}

prop_compose! {
    fn any_held()(name in ".{0,20}", version in "[0-9a-f]{0,32}", value in prop::collection::vec(any::<u8>(), 0..200)) -> Held {
        Held { name, version, value }
    }
}

prop_compose! {
    fn any_contents()(
        node in ".{0,30}",
        control in ".{0,30}",
        saved_at in any::<u64>(),
        held in prop::collection::vec(prop::collection::vec(any_held(), 0..8), 3),
    ) -> Contents {
        let types = [ADDRESS_TYPE, AUTHORIZATION_TYPE, MESH_CONFIG_TYPE];
        let kinds = types.into_iter().zip(held).map(|(type_url, held)| kind(type_url, &held)).collect();
        Contents { node, control, saved_at, kinds }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_what_is_read(contents in any_contents()) {
        prop_assert_eq!(image::decode(&image::encode(&contents)), Ok(contents));
    }

    #[test]
    fn other_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(image::decode(&bytes).is_err());
        let behind_a_header = [&image::encode(&small())[..12], &bytes].concat();
        prop_assert!(image::decode(&behind_a_header).is_err());
    }
}

#[test]
fn every_flipped_bit_is_refused() {
    let whole = image::encode(&small());
    assert_eq!(image::decode(&whole), Ok(small()));
    for bit in 0..whole.len() * 8 {
        let mut damaged = whole.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(image::decode(&damaged).is_err(), "bit {bit}");
    }
}

#[test]
fn every_other_length_is_refused() {
    let whole = image::encode(&small());
    for length in 0..whole.len() {
        assert!(image::decode(&whole[..length]).is_err(), "length {length}");
    }
    let longer = [whole.as_slice(), &[0]].concat();
    assert!(matches!(image::decode(&longer), Err(ImageError::Length { .. })));
}

#[test]
fn a_whole_file_of_another_kind_is_refused_by_its_kind() {
    let mut newer = image::encode(&small());
    newer[11] += 1;
    assert_eq!(image::decode(&newer), Err(ImageError::Format(2)));
    let lacking = Contents { kinds: small().kinds[1..].to_vec(), ..small() };
    assert_eq!(image::decode(&image::encode(&lacking)), Err(ImageError::Incomplete(AUTHORIZATION_TYPE)));
}

#[test]
fn only_our_own_file_that_nobody_else_could_write_is_loaded() {
    let scratch = Scratch::new("load");
    let path = scratch.0.join("node-a.view");
    assert_eq!(load(&path, &owner()).unwrap(), None);
    private::replace(&path, &image::encode(&small())).unwrap();
    assert_eq!(load(&path, &owner()).unwrap(), Some(small()));
    let others =
        [Owner { node: "node-b".into(), ..owner() }, Owner { control: "https://10.0.0.2:15012".into(), ..owner() }];
    for other in others {
        assert!(matches!(load(&path, &other), Err(CacheError::Foreign { .. })), "{other}");
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).unwrap();
    assert!(matches!(load(&path, &owner()), Err(CacheError::File { .. })));
}

fn resources() -> Resources {
    let mut resources = Resources::default();
    for kind in small().kinds {
        let refused = kind.held.iter().filter(|held| held.version.is_empty());
        let refused: Vec<_> = refused.map(|held| Refusal { name: held.name.clone(), reason: "bad".into() }).collect();
        resources.take(kind.answer(), &refused);
    }
    resources
}

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(small().saved_at)
}

#[test]
fn what_is_in_force_is_kept_as_it_came() {
    let mut resources = resources();
    assert_eq!(resources.contents(&owner(), now()), small());
    let changes = resources.changes();
    resources.take(kind(ADDRESS_TYPE, &[]).answer(), &[]);
    assert_eq!(resources.changes(), changes, "an empty answer changes nothing");

    // Refused, with a good form before: that stays. An alias is another name for what is there already.
    let newer =
        kind(ADDRESS_TYPE, &[held("web", "2", b"bad"), held("/10.0.0.1", "1", b"address"), held("db", "1", b"db")]);
    resources.take(newer.answer(), &[Refusal { name: "web".into(), reason: "bad".into() }]);
    let kinds = resources.contents(&owner(), now()).kinds;
    assert_eq!(kinds[1].held, [held("db", "1", b"db"), held("web", "1", b"address")]);

    // A policy that is mended has a version again; what is removed is gone.
    resources.take(kind(AUTHORIZATION_TYPE, &[held("default/bad", "2", b"good")]).answer(), &[]);
    let mut removal = kind(ADDRESS_TYPE, &[]).answer();
    removal.removed_resources = vec!["web".into()];
    resources.take(removal, &[]);
    let kinds = resources.contents(&owner(), now()).kinds;
    assert_eq!(kinds[0].held, [held("default/bad", "2", b"good")]);
    assert_eq!(kinds[1].held, [held("db", "1", b"db")]);
    assert!(resources.changes() > changes);
}

/// A saver that runs, and what it writes.
struct Ground {
    scratch: Scratch,
    resources: SharedResources,
    view_changes: watch::Sender<u64>,
    status: SharedCacheStatus,
    drain: crate::drain::Drain,
}

impl Ground {
    fn start(name: &str) -> Self {
        let (scratch, shared) = (Scratch::new(name), SharedResources::default());
        let (view_changes, changes) = watch::channel(0);
        let saver = Saver::new(scratch.0.join("state/node-a.view"), owner(), shared.clone(), changes);
        let (status, drain) = (saver.status(), crate::drain::Drain::default());
        let closing = drain.clone();
        drain.spawn(saver.run(async move {
            closing.reached(crate::drain::Phase::Closing).await;
            super::Ending::Write
        }));
        Self { scratch, resources: shared, view_changes, status, drain }
    }

    fn path(&self) -> PathBuf {
        self.scratch.0.join("state/node-a.view")
    }

    fn publish(&self) {
        *self.resources.lock().unwrap() = resources();
        self.view_changes.send_modify(|generation| *generation += 1);
    }

    async fn until(&self, is_so: impl Fn(&CacheStatus) -> bool) {
        let waiting = async {
            while !is_so(&self.status.load()) {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, waiting).await.expect("in time");
    }
}

#[tokio::test]
async fn a_view_is_written_once_however_many_changes_make_it() {
    let ground = Ground::start("saver");
    assert!(!ground.path().exists());
    for _ in 0..5 {
        ground.publish();
    }
    ground.until(|status| status.saves == 1).await;
    assert_eq!(load(&ground.path(), &owner()).unwrap().unwrap().kinds, small().kinds);
    // The same resources in another generation are on disk already.
    ground.publish();
    ground.drain.advance(crate::drain::Phase::Closing);
    timeout(SOON, ground.drain.joined()).await.expect("it ends");
    assert_eq!(ground.status.load().saves, 1);
}

#[tokio::test]
async fn what_is_not_written_yet_is_written_at_the_end() {
    let ground = Ground::start("flush");
    ground.publish();
    ground.drain.advance(crate::drain::Phase::Closing);
    timeout(SOON, ground.drain.joined()).await.expect("it ends");
    assert_eq!(load(&ground.path(), &owner()).unwrap().unwrap().kinds, small().kinds);
}

#[tokio::test]
async fn a_file_that_cannot_be_replaced_goes_and_comes_back_when_it_can() {
    let ground = Ground::start("full");
    fs::create_dir(ground.path().parent().unwrap()).unwrap();
    private::replace(&ground.path(), b"superseded").unwrap();
    // Where the next file is written first.
    let in_the_way = ground.path().with_file_name("node-a.view.next");
    fs::create_dir(&in_the_way).unwrap();
    ground.publish();
    ground.until(|status| status.failures == 1).await;
    assert!(!ground.status.load().error.is_empty());
    assert!(!ground.path().exists(), "what is superseded must not come back");
    fs::remove_dir(&in_the_way).unwrap();
    ground.until(|status| status.saves == 1).await;
    assert_eq!(ground.status.load().error, "");
    assert_eq!(load(&ground.path(), &owner()).unwrap().unwrap().kinds, small().kinds);
}
