//! Moves through the real loader, over stores that count how often they are open.

use proptest::prelude::*;

use super::*;
use crate::loader::Moving;
use mecha_resources::kinds::SwapPhase;

/// `version` at `resource`, on its way from the first to the second.
fn moving(phase: SwapPhase, old: &Component, new: &Component) -> Vec<Wanted> {
    let previous = old.clone();
    let moving = Moving { from: "before".into(), to: "after".into(), phase, previous };
    vec![Wanted { document: new.clone(), moving: Some(moving) }]
}

impl Rig {
    async fn to(&self, phase: SwapPhase, old: &Component, new: &Component) -> Standing {
        self.loader.reconcile(moving(phase, old, new)).await;
        self.standing()
    }

    fn standing(&self) -> Standing {
        self.loader.standing().expect("nothing is being applied").remove(0)
    }

    /// Waits until the sidecar says that it is where it should be.
    async fn reached(&self) -> Standing {
        loop {
            let standing = self.standing();
            if standing.reached {
                return standing;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn etag(&self) -> String {
        let none = Metadata::new();
        let found = self.core.state.get(&Cx::new(Front::Http), "s", "k", Consistency::Eventual, &none).await;
        found.unwrap().unwrap().etag.unwrap()
    }
}

fn two(name: &str) -> (Component, Component) {
    let (a, b) = (format!("{name}-old"), format!("{name}-new"));
    (fake("s", &[("resource", &a), ("version", "old")]), fake("s", &[("resource", &b), ("version", "new")]))
}

#[tokio::test(start_paused = true)]
async fn a_move_goes_through_its_phases_and_leaves_one_receipt() {
    let rig = Rig::new(true);
    let (old, new) = two("phases");
    rig.loader.load_all(vec![old.clone()]).await.unwrap();
    let unmarked = rig.etag().await;
    let standing = rig.to(SwapPhase::Prepare, &old, &new).await;
    assert!(standing.reached && !standing.failed, "{standing:?}");
    assert_eq!((open("phases-old"), open("phases-new")), (1, 1));
    assert_eq!(rig.value("s").await.unwrap(), "old");
    // A set that comes twice changes nothing.
    rig.to(SwapPhase::Prepare, &old, &new).await;
    assert_eq!((open("phases-old"), open("phases-new")), (1, 1));
    assert!(rig.to(SwapPhase::Switch, &old, &new).await.reached);
    assert_eq!(rig.value("s").await.unwrap(), "new");
    assert_ne!(rig.etag().await, unmarked, "an ETag of the old store must not match at the new one");
    let standing = rig.to(SwapPhase::Drain, &old, &new).await;
    assert_eq!((standing.reached, standing.pending), (true, 0));
    rig.to(SwapPhase::Finalize, &old, &new).await;
    rig.reached().await;
    assert_eq!((open("phases-old"), open("phases-new")), (0, 1));
    rig.loader.reconcile(vec![new.clone()]).await;
    assert_eq!(rig.standing(), Standing { name: "s".into(), reached: true, ..Standing::default() });
    let receipts = rig.receipts().await;
    assert_eq!(receipts.len(), 1, "{receipts:#?}");
    let json = serde_json::to_value(&receipts[0]).unwrap();
    assert_eq!((json["outcome"].as_str(), json["dataMoved"].as_bool()), (Some("applied"), Some(false)), "{json:#}");
    assert_eq!((json["move"]["from"].as_str(), json["move"]["to"].as_str()), (Some("before"), Some("after")));
    let phases: Vec<_> =
        json["move"]["phases"].as_array().unwrap().iter().map(|p| p["phase"].as_str().unwrap()).collect();
    assert_eq!(phases, ["Prepare", "Switch", "Drain", "Finalize"]);
}

#[tokio::test(start_paused = true)]
async fn a_move_that_goes_back_gives_the_work_back_and_closes_the_new_side() {
    let rig = Rig::new(true);
    let (old, new) = two("back");
    rig.loader.load_all(vec![old.clone()]).await.unwrap();
    rig.to(SwapPhase::Prepare, &old, &new).await;
    rig.to(SwapPhase::Switch, &old, &new).await;
    let standing = rig.to(SwapPhase::RollBack, &old, &new).await;
    assert_eq!((standing.reached, standing.pending), (true, 0), "{standing:?}");
    assert_eq!((rig.value("s").await.unwrap().as_str(), open("back-new")), ("old", 1));
    rig.loader.reconcile(vec![old.clone()]).await;
    while open("back-new") > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(open("back-old"), 1);
    let receipts = rig.receipts().await;
    assert_eq!((receipts.len(), receipts[0].outcome), (1, Outcome::RolledBack), "{receipts:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_new_side_that_does_not_open_is_reported_and_the_old_one_goes_on() {
    for broken in [("broken", "true"), ("silent", "true")] {
        let rig = Rig::new(true);
        let name = format!("fails-{}", broken.0);
        let (old, _) = two(&name);
        let new = fake("s", &[("resource", &format!("{name}-new")), broken]);
        rig.loader.load_all(vec![old.clone()]).await.unwrap();
        let standing = rig.to(SwapPhase::Prepare, &old, &new).await;
        assert!(standing.failed && !standing.reached, "{standing:?}");
        assert!(standing.message.contains("it "), "{standing:?}");
        assert_eq!(rig.value("s").await.unwrap(), "old");
        // The way back needs nothing of it.
        let standing = rig.to(SwapPhase::RollBack, &old, &new).await;
        assert_eq!((standing.reached, standing.failed, standing.pending), (true, false, 0), "{standing:?}");
        assert!(!standing.message.is_empty());
        rig.loader.reconcile(vec![old.clone()]).await;
        assert_eq!(rig.value("s").await.unwrap(), "old");
        assert!(rig.core.swaps.refused().is_empty());
        let receipts = rig.receipts().await;
        assert_eq!(receipts.len(), 1, "{receipts:#?}");
        assert!(receipts[0].reason.is_some(), "{receipts:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_old_side_that_is_gone_does_not_hold_up_the_way_out_of_it() {
    let rig = Rig::new(true);
    let (_, new) = two("gone");
    let old = fake("s", &[("resource", "gone-old"), ("broken", "true")]);
    rig.loader.load_all(moving(SwapPhase::Prepare, &old, &new)).await.unwrap();
    assert!(rig.standing().reached && !rig.standing().failed, "{:?}", rig.standing());
    rig.value("s").await.unwrap_err();
    let standing = rig.to(SwapPhase::Switch, &old, &new).await;
    // What it may still hold is for a person to judge.
    assert_eq!((standing.reached, standing.failed, standing.pending), (true, false, 1), "{standing:?}");
    assert_eq!(rig.value("s").await.unwrap(), "new");
    rig.to(SwapPhase::Finalize, &old, &new).await;
    assert!(rig.reached().await.pending == 0);
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_that_starts_in_the_middle_of_a_move_joins_it() {
    let all = [
        (SwapPhase::Prepare, "old", (1, 1)),
        (SwapPhase::Switch, "new", (1, 1)),
        (SwapPhase::Paused, "new", (1, 1)),
        (SwapPhase::Finalize, "new", (0, 1)),
        (SwapPhase::RollBack, "old", (1, 1)),
    ];
    for (phase, owner, wanted) in all {
        let rig = Rig::new(true);
        let name = format!("joins-{phase}");
        let (old, new) = two(&name);
        rig.loader.load_all(moving(phase, &old, &new)).await.unwrap();
        assert!(rig.standing().reached, "{phase}: {:?}", rig.standing());
        assert_eq!(rig.value("s").await.unwrap(), owner, "{phase}");
        assert_eq!((open(&format!("{name}-old")), open(&format!("{name}-new"))), wanted, "{phase}");
    }
}

#[tokio::test(start_paused = true)]
async fn two_documents_of_the_same_content_are_no_move() {
    let rig = Rig::new(true);
    let (old, _) = two("same");
    rig.loader.load_all(vec![old.clone()]).await.unwrap();
    for phase in [SwapPhase::Prepare, SwapPhase::Switch, SwapPhase::Finalize] {
        let standing = rig.to(phase, &old, &old.clone()).await;
        assert_eq!((standing.reached, standing.pending, open("same-old")), (true, 0, 1), "{phase}");
    }
    assert!(rig.receipts().await.is_empty());
}

fn phase() -> impl Strategy<Value = Option<SwapPhase>> {
    prop::sample::select(vec![
        None,
        Some(SwapPhase::Prepare),
        Some(SwapPhase::Switch),
        Some(SwapPhase::Drain),
        Some(SwapPhase::Paused),
        Some(SwapPhase::Finalize),
        Some(SwapPhase::RollBack),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// `None` is a set in which the claim has the old backend and does not move.
    #[test]
    fn any_phases_in_any_order_end_in_what_the_last_one_asks_for(
        phases in prop::collection::vec(phase(), 1..12),
        case in any::<u64>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let rig = Rig::new(true);
            let name = format!("any-{case}");
            let (old, new) = two(&name);
            rig.loader.load_all(vec![old.clone()]).await.unwrap();
            for phase in &phases {
                match phase {
                    Some(phase) => drop(rig.to(*phase, &old, &new).await),
                    None => drop(rig.loader.reconcile(vec![old.clone()]).await),
                }
                // One of both always answers.
                rig.value("s").await.unwrap();
            }
            let last = phases.last().copied().flatten();
            let (owner, wanted) = match last {
                None => ("old", (1, 0)),
                Some(SwapPhase::Prepare | SwapPhase::RollBack) => ("old", (1, 1)),
                Some(SwapPhase::Switch | SwapPhase::Drain | SwapPhase::Paused) => ("new", (1, 1)),
                Some(SwapPhase::Finalize) => ("new", (0, 1)),
            };
            rig.reached().await;
            assert_eq!(rig.value("s").await.unwrap(), owner);
            // What an earlier phase let go is closed in its own time.
            while (open(&format!("{name}-old")), open(&format!("{name}-new"))) != wanted {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    }
}
