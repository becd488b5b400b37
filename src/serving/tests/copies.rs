//! What is told of a mirror's copies.

use flywheel_api::inference_service::MirrorStatus;

use super::*;
use crate::serving::AssignmentMemo;

const BOTH: [(&str, &str); 2] = [("intent-v1", "Ready"), ("intent-v2", "Ready")];

/// One operator that goes on from pass to pass, so that it knows when pods need not be asked.
#[derive(Default)]
struct Operator(AssignmentMemo);

impl Operator {
    async fn pass(&mut self, world: &World) -> (Vec<String>, Duration) {
        let mut context = world.context();
        context.assignments = std::mem::take(&mut self.0);
        let context = Arc::new(context);
        let done = world.reconcile_by(Arc::clone(&context)).await;
        self.0 = Arc::into_inner(context).unwrap().assignments;
        done
    }
}

impl World {
    fn copied(&self, pod: &str, texts: u64, same: u64) {
        let mut says = stats(u64::MAX, "intent-v1", &BOTH);
        says["versions"][1]["copies"] = json!({"texts": texts, "same": same, "failed": 1, "shed": 2, "requests": texts,
            "seconds": 0.02 * texts as f64, "answeredSeconds": 0.01 * texts as f64});
        self.say(pod, says);
    }

    fn told(&self) -> Option<MirrorStatus> {
        self.service().status.unwrap().mirror
    }
}

#[tokio::test]
async fn the_status_tells_what_came_of_copies_and_is_not_written_all_the_time() {
    let mut world = World::serving().await;
    world.version("intent-v2", "intent", Some("True"));
    world.spec(json!({"mirror": {"modelVersion": "intent-v2", "percent": 10}}));
    let mut operator = Operator::default();
    operator.pass(&world).await;
    // A pod of an earlier release says nothing of copies.
    for pod in ["a", "b"] {
        world.say(pod, stats(u64::MAX, "intent-v1", &BOTH));
    }
    operator.pass(&world).await;
    operator.pass(&world).await;
    assert_eq!(world.told(), None);
    for pod in ["a", "b"] {
        world.copied(pod, 500, 450);
    }
    let (writes, again) = operator.pass(&world).await;
    assert_eq!(
        (writes, again),
        (vec!["apply status".to_owned()], Duration::from_secs(30))
    );
    let told = world.told().unwrap();
    assert_eq!((told.texts, told.same, told.failed, told.shed), (1000, 900, 2, 4));
    assert_eq!(told.milliseconds.as_deref(), Some("20.0"));
    assert_eq!(told.answered_milliseconds.as_deref(), Some("10.0"));
    world.copied("a", 5000, 450);
    world.seconds += 29;
    assert_eq!(operator.pass(&world).await.0, NOTHING, "too soon");
    world.seconds += 1;
    assert_eq!(operator.pass(&world).await.0, ["apply status"]);
    assert_eq!(world.told().unwrap().texts, 5500);
    world.seconds += 30;
    assert_eq!(operator.pass(&world).await.0, NOTHING, "nothing new");
    world.spec(json!({"mirror": null}));
    operator.pass(&world).await;
    assert_eq!(world.told(), None);
}
