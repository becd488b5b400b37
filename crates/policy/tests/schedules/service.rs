//! A service's pods in the model, with what the Deployment, the kubelets and the node controller do about them.

use flywheel_policy::placement::PodSchedulingView;
use flywheel_policy::serving::{Ended, PodView, Stage, Trouble};

use crate::cluster::{Node, Second, Uid, at};

/// Seconds that a server loads.
const LOAD_SECONDS: i64 = 10;
/// Seconds that a kubelet waits before it starts a crashed server again, from the third time on.
const BACK_OFF: i64 = 40;

/// What a server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    /// Its pod has not been seen by a kubelet.
    Nothing,
    /// Its image cannot be had.
    NoImage,
    /// It loads until then.
    Loading(Second),
    /// It answers.
    Answers,
    /// It ended, and is started again then.
    Crashed(Second),
}

/// A pod of the service.
#[derive(Clone, Debug)]
pub struct ServicePod {
    pub uid: Uid,
    pub node: Option<usize>,
    created: Second,
    /// When it was told to end.
    pub asked: Option<Second>,
    doing: Doing,
    /// Its program ends wherever its node lets it begin.
    pub crashes: bool,
    pub no_image: bool,
    // As the API server has it.
    pub stage: Stage,
    restarts: i32,
    told_restarts: i32,
    backs_off: bool,
    image_fails: bool,
    pub gpu_broken: bool,
    pub out_of_contact: bool,
    changed: Option<Second>,
    waiting_since: Option<Second>,
}

impl ServicePod {
    /// Whether clients get answers of it, whatever the API server says.
    pub fn answers(&self, nodes: &[Node]) -> bool {
        let reached = self.node.is_some_and(|node| nodes[node].alive && nodes[node].net);
        self.doing == Doing::Answers && self.asked.is_none() && reached
    }

    /// As the operator sees it.
    pub fn view(&self) -> PodView {
        let trouble = |reason| Trouble {
            reason,
            message: String::new(),
        };
        let trouble = if self.image_fails {
            Some(trouble(flywheel_api::conditions::reasons::IMAGE_PULL_FAILED))
        } else if self.backs_off {
            Some(trouble(flywheel_api::conditions::reasons::POD_FAILED))
        } else {
            None
        };
        PodView {
            name: self.uid.to_string(),
            version: None,
            stage: self.stage,
            scheduling: PodSchedulingView {
                scheduled: self.node.is_some(),
                message: None,
                unseen_by: None,
            },
            waiting_since: self.waiting_since.map(at),
            trouble,
            restarts: self.told_restarts,
            ended: None::<Ended>,
            backs_off: self.backs_off,
            changed: self.changed.map(at),
            created: Some(at(self.created)),
        }
    }

    /// Since when the scheduler finds no room for it.
    pub fn no_room_since(&self) -> Option<Second> {
        self.waiting_since
    }

    fn tell(&mut self, stage: Stage, now: Second) {
        if (stage == Stage::Ready) != (self.stage == Stage::Ready) {
            self.changed = Some(now);
        }
        self.stage = stage;
    }
}

/// The service.
#[derive(Clone, Debug)]
pub struct Service {
    /// Pods that there are to be.
    pub size: u32,
    /// Pods that its Deployment asks for.
    pub replicas: u32,
    pub pods: Vec<ServicePod>,
}

impl Service {
    /// Of this size.
    pub fn new(size: u32) -> Self {
        Self {
            size,
            replicas: size,
            pods: Vec::new(),
        }
    }

    /// Makes and ends pods as the ReplicaSet controller does.
    pub fn replica_set(&mut self, now: Second, mut uid: impl FnMut() -> Uid) {
        let wanted = usize::try_from(self.replicas).unwrap();
        let mut living: Vec<usize> = (0..self.pods.len())
            .filter(|place| self.pods[*place].asked.is_none())
            .collect();
        for _ in living.len()..wanted {
            self.pods.push(ServicePod {
                uid: uid(),
                node: None,
                created: now,
                asked: None,
                doing: Doing::Nothing,
                crashes: false,
                no_image: false,
                stage: Stage::Pending,
                restarts: 0,
                told_restarts: 0,
                backs_off: false,
                image_fails: false,
                gpu_broken: false,
                out_of_contact: false,
                changed: None,
                waiting_since: None,
            });
        }
        // Those without a node first, then those that are not ready, then the youngest.
        living.sort_by_key(|place| {
            let pod = &self.pods[*place];
            (
                pod.node.is_some(),
                pod.stage == Stage::Ready,
                std::cmp::Reverse(pod.created),
            )
        });
        let surplus: Vec<Uid> = living
            .iter()
            .take(living.len().saturating_sub(wanted))
            .map(|place| self.pods[*place].uid)
            .collect();
        surplus.into_iter().for_each(|uid| self.delete(uid, now));
    }

    /// Tells a pod to end; one that no kubelet has is gone at once.
    pub fn delete(&mut self, uid: Uid, now: Second) {
        if let Some(pod) = self.pods.iter_mut().find(|pod| pod.uid == uid) {
            pod.asked = pod.asked.or(Some(now));
        }
        self.pods.retain(|pod| pod.uid != uid || pod.node.is_some());
    }

    /// Pods that hold a GPU of this node in the scheduler's books.
    pub fn on(&self, node: usize) -> usize {
        self.pods.iter().filter(|pod| pod.node == Some(node)).count()
    }

    /// Gives one pod this node, if one waits.
    pub fn place(&mut self, node: usize) -> bool {
        let waiting = self.pods.iter_mut().find(|pod| pod.node.is_none());
        waiting.is_some_and(|pod| {
            pod.node = Some(node);
            pod.waiting_since = None;
            pod.stage = Stage::Starting;
            true
        })
    }

    /// The scheduler says of those that are left that it finds no room.
    pub fn no_room(&mut self, now: Second) {
        for pod in self.pods.iter_mut().filter(|pod| pod.node.is_none()) {
            pod.waiting_since = pod.waiting_since.or(Some(now));
        }
    }

    /// The node controller calls this node not ready.
    pub fn node_lost(&mut self, node: usize, evict: bool, now: Second) {
        for pod in self.pods.iter_mut().filter(|pod| pod.node == Some(node)) {
            pod.out_of_contact = true;
            if pod.stage == Stage::Ready {
                pod.tell(Stage::Unready, now);
            }
            if evict {
                pod.asked = pod.asked.or(Some(now));
            }
        }
    }

    /// The kubelet of this node tells what its pods do.
    pub fn kubelet(&mut self, node: usize, seen: &Node, now: Second) {
        self.pods.retain(|pod| pod.node != Some(node) || pod.asked.is_none());
        for pod in self.pods.iter_mut().filter(|pod| pod.node == Some(node)) {
            if pod.doing == Doing::Nothing || (pod.doing == Doing::NoImage && !pod.no_image) {
                pod.doing = if pod.no_image {
                    Doing::NoImage
                } else {
                    Doing::Loading(now + LOAD_SECONDS)
                };
            }
            pod.out_of_contact = false;
            pod.gpu_broken = seen.gpu_broken;
            pod.told_restarts = pod.restarts;
            pod.backs_off = matches!(pod.doing, Doing::Crashed(_));
            pod.image_fails = pod.doing == Doing::NoImage;
            let stage = match pod.doing {
                Doing::Nothing | Doing::NoImage | Doing::Crashed(_) => Stage::Starting,
                Doing::Loading(_) => Stage::Loading,
                Doing::Answers => Stage::Ready,
            };
            pod.tell(stage, now);
        }
    }

    /// Time passed: servers go on where their nodes have power.
    pub fn go_on(&mut self, nodes: &[Node], now: Second) {
        for pod in &mut self.pods {
            if !pod.node.is_some_and(|node| nodes[node].alive) {
                continue;
            }
            pod.doing = match pod.doing {
                Doing::Loading(until) if now >= until && pod.crashes => {
                    pod.restarts += 1;
                    Doing::Crashed(now + if pod.restarts >= 3 { BACK_OFF } else { 1 })
                }
                Doing::Loading(until) if now >= until => Doing::Answers,
                Doing::Crashed(until) if now >= until => Doing::Loading(now + 1),
                doing => doing,
            };
        }
    }

    /// A pod's program ends.
    pub fn end(&mut self, place: usize, for_ever: bool, now: Second) {
        let pod = &mut self.pods[place];
        if pod.doing == Doing::Answers {
            pod.crashes = for_ever;
            pod.restarts += 1;
            pod.doing = Doing::Crashed(now + 1);
        }
    }

    /// The node lost its power.
    pub fn crash(&mut self, node: usize) {
        for pod in self.pods.iter_mut().filter(|pod| pod.node == Some(node)) {
            if pod.doing != Doing::Nothing {
                pod.doing = Doing::Nothing;
                pod.restarts += 1;
            }
        }
    }

    /// Pods that clients get answers of.
    pub fn answering(&self, nodes: &[Node]) -> usize {
        self.pods.iter().filter(|pod| pod.answers(nodes)).count()
    }
}
