use proptest::prelude::*;

use super::*;

/// Requests per second of one replica of the tests whose worker always computes.
const THROUGHPUT: f64 = 100.0;

fn goal(min: u32, max: u32) -> Goal {
    Goal {
        metric: Metric::Qps,
        target_per_replica: None,
        min_replicas: min,
        max_replicas: max,
        stable_window: STABLE_WINDOW,
        scale_down_delay: SCALE_DOWN_DELAY,
        qps: None,
        latency: LATENCY,
    }
}

fn at(seconds: f64) -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap() + jiff::SignedDuration::from_millis((seconds * 1000.0) as i64)
}

#[derive(Clone)]
struct Pod {
    uid: String,
    created: f64,
    ready: f64,
    silent: bool,
    asked: bool,
    load: Load,
    /// Parts of a request that are not counted yet.
    rest: f64,
}

/// A service whose pods do what they are asked: an even share each, at most their throughput, the rest is refused.
#[derive(Clone)]
struct World {
    now: f64,
    pods: Vec<Pod>,
    made: u32,
    start: f64,
    throughput: f64,
    /// Class of [`Load::latency`] that answers fall into: 6 is within 100 ms.
    class: usize,
    /// Seconds that a request stays in the pod.
    response: f64,
    scaler: Scaler,
    goal: Goal,
    wanted: u32,
}

impl World {
    fn new(goal: Goal, replicas: u32) -> Self {
        let mut world = Self {
            now: 0.0,
            pods: vec![],
            made: 0,
            start: 30.0,
            throughput: THROUGHPUT,
            class: 6,
            response: 0.02,
            scaler: Scaler::new(at(0.0)),
            goal,
            wanted: replicas,
        };
        world.resize(-100.0);
        world
    }

    fn resize(&mut self, created: f64) {
        while self.pods.len() < self.wanted as usize {
            self.made += 1;
            self.pods.push(Pod {
                uid: format!("pod-{}", self.made),
                created,
                ready: created + self.start,
                silent: false,
                asked: true,
                load: Load {
                    workers: 1,
                    ..Load::default()
                },
                rest: 0.0,
            });
        }
        self.pods.truncate(self.wanted as usize);
    }

    /// Time goes by with so many requests per second.
    fn run(&mut self, seconds: f64, qps: f64) {
        let now = self.now + seconds;
        let ready = self.pods.iter().filter(|pod| pod.ready <= self.now).count().max(1) as f64;
        for pod in self.pods.iter_mut().filter(|pod| pod.ready <= self.now) {
            let asked = qps / ready * seconds + pod.rest;
            let requests = asked.floor();
            pod.rest = asked - requests;
            let served = requests.min((self.throughput * seconds).round());
            pod.load.requests += requests as u64;
            pod.load.refused += (requests - served) as u64;
            pod.load.latency[self.class] += served as u64;
            pod.load.busy_seconds += served / self.throughput;
            pod.load.in_flight_seconds += served * self.response;
        }
        self.now = now;
    }

    fn look(&self) -> Look {
        let (ready, starting): (Vec<_>, Vec<_>) = self.pods.iter().partition(|pod| pod.ready <= self.now);
        Look {
            at: at(self.now),
            ready: ready
                .into_iter()
                .map(|pod| ReadyPod {
                    uid: pod.uid.clone(),
                    created: at(pod.created),
                    ready_since: at(pod.ready),
                    said: match (pod.asked, pod.silent) {
                        (false, _) => Said::NotAsked,
                        (true, true) => Said::Silent,
                        (true, false) => Said::Load(pod.load.clone()),
                    },
                })
                .collect(),
            starting: starting
                .into_iter()
                .map(|pod| StartingPod {
                    uid: pod.uid.clone(),
                    created: at(pod.created),
                })
                .collect(),
        }
    }

    fn decide(&mut self) -> Decision {
        let decision = self.scaler.decide(&self.goal, self.wanted, at(self.now));
        assert!(!decision.why.is_empty());
        decision
    }

    /// A look and a decision every two seconds, which are followed; the last decision.
    fn follow(&mut self, seconds: u32, qps: impl Fn(f64) -> f64) -> Decision {
        let mut last = None;
        for _ in 0..seconds / 2 {
            self.run(2.0, qps(self.now));
            self.scaler.look(self.look());
            let decision = self.decide();
            self.wanted = decision.replicas;
            self.resize(self.now);
            last = Some(decision);
        }
        last.unwrap()
    }

    /// The same with a size that stays whatever is decided.
    fn watch(&mut self, seconds: u32, qps: impl Fn(f64) -> f64) -> Decision {
        let mut last = None;
        for _ in 0..seconds / 2 {
            self.run(2.0, qps(self.now));
            self.scaler.look(self.look());
            last = Some(self.decide());
        }
        last.unwrap()
    }
}

#[test]
fn before_and_without_answers_the_size_stays() {
    let mut world = World::new(goal(1, 50), 4);
    let decision = world.decide();
    assert_eq!((decision.replicas, decision.reason), (4, Reason::NoData));
    world.scaler.look(world.look());
    let decision = world.decide();
    assert_eq!(
        (decision.replicas, decision.reason),
        (4, Reason::NoData),
        "one look is no rate"
    );

    world.follow(100, |_| 250.0);
    for pod in &mut world.pods {
        pod.silent = true;
    }
    for _ in 0..300 {
        let decision = world.follow(2, |_| 2_000.0);
        assert_eq!((decision.replicas, decision.reason), (4, Reason::ScrapeBlocked));
        assert_eq!(decision.figures.silent, 4);
    }
}

#[test]
fn a_look_that_asks_nobody_orders_nothing() {
    let mut world = World::new(goal(1, 50), 4);
    world.watch(100, |_| 250.0);
    let more = world.watch(2, |_| 2_000.0).replicas;
    assert!(more > 4);
    for pod in &mut world.pods {
        pod.asked = false;
    }
    let decision = world.watch(2, |_| 2_000.0);
    assert_eq!((decision.replicas, decision.reason), (4, Reason::NoData));
}

#[test]
fn looks_that_stop_leave_the_size_and_the_counters_bridge_the_gap() {
    let mut world = World::new(goal(1, 50), 8);
    world.follow(400, |_| 600.0);
    let before = world.wanted;
    // Nobody looks for five minutes: the last figures are old, not zero.
    world.run(300.0, 600.0);
    let decision = world.decide();
    assert_eq!(
        (decision.replicas, decision.reason),
        (before, Reason::NoData),
        "{}",
        decision.why
    );
    assert!(decision.why.contains("300 s old"), "{}", decision.why);
    // The first look afterwards tells what came in between.
    let decision = world.follow(2, |_| 600.0);
    assert_eq!(decision.reason, Reason::Steady, "{}", decision.why);
    assert!(
        (decision.figures.qps.unwrap() - 600.0).abs() < 5.0,
        "{:?}",
        decision.figures
    );
}

#[test]
fn an_operator_that_restarts_takes_nothing_away_before_it_has_seen_window_and_delay() {
    for (delay, first) in [(0, 60), (300, 300)] {
        let mut world = World::new(goal(1, 50), 20);
        world.goal.scale_down_delay = Duration::from_secs(delay);
        let mut seen = 0.0;
        while world.wanted == 20 {
            let decision = world.follow(2, |_| 10.0);
            assert!(world.now < 400.0);
            if decision.replicas == 20 {
                assert!(
                    matches!(decision.reason, Reason::Waits | Reason::NoData),
                    "{}",
                    decision.why
                );
            }
            seen = world.now;
        }
        assert!(
            (f64::from(first)..f64::from(first) + 4.0).contains(&seen),
            "delay {delay}: {seen} s"
        );
    }
}

#[test]
fn it_sizes_by_what_a_replica_was_seen_to_do() {
    let mut world = World::new(goal(1, 100), 10);
    let decision = world.follow(200, |_| 800.0);
    let figures = &decision.figures;
    // One worker, 10 ms each: 89 of 100 per second keep the 99th percentile within 200 ms.
    assert!((figures.capacity.unwrap() - 89.0).abs() < 1.0, "{figures:?}");
    // Ten are planned for 80.3 each.
    assert_eq!(decision.replicas, 10, "{}", decision.why);
    assert!((figures.per_replica.unwrap() - 80.3).abs() < 1.0, "{figures:?}");
    assert_eq!(figures.start_time, Some(Duration::from_secs(30)));
    assert_eq!(decision.reason, Reason::Steady);
    assert!(!decision.in_change);
}

#[test]
fn a_given_target_is_what_one_replica_gets() {
    for (metric, target, load, want) in [
        (Metric::Qps, 50.0, 400.0, 8),
        (Metric::Qps, 50.0, 401.0, 9),
        // 400 per second that stay 20 ms each are eight at once.
        (Metric::Concurrency, 2.0, 400.0, 4),
        (Metric::Concurrency, 0.5, 400.0, 16),
    ] {
        let mut world = World::new(goal(1, 100), 4);
        world.goal.metric = metric;
        world.goal.target_per_replica = Some(target);
        let decision = world.follow(240, |_| load);
        assert_eq!(decision.replicas, want, "{metric:?} {target} {load}: {}", decision.why);
        assert_eq!(decision.figures.per_replica, Some(target));
    }
}

#[test]
fn a_burst_is_answered_at_the_first_look_that_shows_it() {
    for interval in [1.0, 2.0] {
        let mut world = World::new(goal(1, 60), 1);
        world.follow(120, |_| 20.0);
        world.run(interval, 3_000.0);
        world.scaler.look(world.look());
        let decision = world.decide();
        assert_eq!(decision.reason, Reason::Burst);
        assert!((37..=39).contains(&decision.replicas), "{interval}: {}", decision.why);
        assert!(decision.in_change);
    }
}

#[test]
fn a_burst_holds_the_size_for_a_stable_window() {
    let mut world = World::new(goal(1, 60), 3);
    world.goal.scale_down_delay = Duration::ZERO;
    world.follow(120, |_| 150.0);
    world.follow(6, |_| 1_500.0);
    let size = world.wanted;
    assert!(size >= 18, "{size}");
    let decision = world.follow(56, |_| 150.0);
    assert_eq!(
        (decision.replicas, decision.reason),
        (size, Reason::Waits),
        "{}",
        decision.why
    );
    let decision = world.follow(40, |_| 150.0);
    assert!(decision.replicas < size, "{}", decision.why);
}

#[test]
fn what_the_newest_look_surely_shows_is_carried_at_once() {
    let mut world = World::new(goal(1, 60), 20);
    world.goal.target_per_replica = Some(70.0);
    let decision = world.watch(120, |_| 1_390.0);
    assert_eq!(decision.replicas, 20, "{}", decision.why);
    // A fifteenth more is no burst, and hardly shows in the stable window; 20 are too few for it.
    let decision = world.watch(2, |_| 1_500.0);
    assert_eq!(decision.replicas, 21, "{}", decision.why);
}

#[test]
fn pods_that_start_are_ordered_once() {
    for metric in [Metric::Qps, Metric::Concurrency] {
        let mut world = World::new(goal(1, 60), 2);
        world.goal.metric = metric;
        world.goal.target_per_replica = Some(if metric == Metric::Qps { 70.0 } else { 4.0 });
        world.follow(120, |_| 100.0);
        // Ten times the load; what cannot be answered stays for a second and makes the requests under way grow.
        world.response = 0.05;
        world.follow(4, |_| 1_000.0);
        let ordered = world.wanted;
        assert!(ordered > 2, "{metric:?}");
        for step in 0..12 {
            world.response = 0.1 * f64::from(step + 1);
            let decision = world.follow(2, |_| 1_000.0);
            assert!(
                decision.replicas <= ordered.max(16),
                "{metric:?} {step}: {ordered} then {}",
                decision.why
            );
            if metric == Metric::Concurrency {
                assert_eq!(decision.replicas, ordered, "{step}: {}", decision.why);
            }
        }
    }
}

#[test]
fn pods_that_never_start_are_replaced_in_part_and_block_nothing() {
    let mut world = World::new(goal(1, 60), 8);
    world.follow(120, |_| 550.0);
    let before = world.wanted;
    // Two of them come back as pods that never become ready.
    for pod in world.pods.iter_mut().take(2) {
        pod.uid.push_str("-again");
        pod.created = world.now;
        pod.ready = f64::INFINITY;
    }
    // Six carry it at the least, so the load orders nothing until 3 x 30 s are over.
    world.follow(80, |_| 500.0);
    assert_eq!(world.wanted, before);
    let decision = world.follow(20, |_| 500.0);
    assert_eq!(
        (decision.figures.starting, decision.replicas),
        (3, before + 1),
        "{}",
        decision.why
    );
    // Nor does it go on ordering.
    let decision = world.follow(80, |_| 500.0);
    assert_eq!(decision.replicas, before + 1, "{}", decision.why);
    // Growth goes on past them.
    let decision = world.follow(4, |_| 2_000.0);
    assert!(decision.replicas >= 24, "{}", decision.why);

    // Where none can start, orders stop at a quarter more.
    let mut world = World::new(goal(1, 1_000), 1);
    world.follow(60, |_| 50.0);
    world.start = f64::INFINITY;
    world.follow(600, |_| 800.0);
    assert!((11..=14).contains(&world.wanted), "{}", world.wanted);
}

#[test]
fn silent_pods_count_as_the_mean_of_the_others_and_so_do_those_not_asked() {
    for ask in [true, false] {
        let mut world = World::new(goal(1, 100), 20);
        for pod in world.pods.iter_mut().skip(12) {
            pod.silent = ask;
            pod.asked = ask;
        }
        let decision = world.watch(120, |_| 1_200.0);
        assert!(
            (decision.figures.qps.unwrap() - 1_200.0).abs() < 15.0,
            "{:?}",
            decision.figures
        );
        assert_eq!(decision.figures.silent, if ask { 8 } else { 0 });
        assert_eq!(decision.reason, Reason::Waits, "{}", decision.why);
    }
}

#[test]
fn a_pod_that_restarts_or_goes_makes_no_rate_of_its_own() {
    let mut world = World::new(goal(1, 100), 10);
    world.watch(120, |_| 600.0);
    // Counters of one begin anew.
    world.pods[0].load = Load {
        workers: 1,
        ..Load::default()
    };
    let decision = world.watch(2, |_| 600.0);
    assert!(
        (decision.figures.burst_qps.unwrap() - 600.0).abs() < 10.0,
        "{:?}",
        decision.figures
    );
    // Two go, and the others get their share.
    world.pods.truncate(8);
    let decision = world.watch(2, |_| 600.0);
    assert!(
        (decision.figures.qps.unwrap() - 600.0).abs() < 10.0,
        "{:?}",
        decision.figures
    );
    // One comes, from zero.
    world.wanted = 9;
    world.start = 1.0;
    world.resize(world.now);
    let decision = world.watch(6, |_| 600.0);
    assert!(
        (decision.figures.qps.unwrap() - 600.0).abs() < 10.0,
        "{:?}",
        decision.figures
    );
}

#[test]
fn scale_down_waits_for_the_delay_and_takes_the_highest_of_it() {
    let mut world = World::new(goal(1, 100), 20);
    world.follow(400, |_| 1_500.0);
    let full = world.wanted;
    let decision = world.follow(200, |_| 700.0);
    assert_eq!(
        (decision.replicas, decision.reason),
        (full, Reason::Waits),
        "{}",
        decision.why
    );
    // Some of the load comes back for a minute, and counts from then on.
    world.follow(60, |_| 1_000.0);
    let decision = world.follow(120, |_| 300.0);
    // A tenth more than that would need them all.
    assert_eq!(decision.replicas, 14, "{}", decision.why);
    let decision = world.follow(400, |_| 300.0);
    // Four would do, but not for a tenth more.
    assert_eq!(decision.replicas, 5, "{}", decision.why);
}

#[test]
fn a_shrink_leaves_at_least_half_and_the_next_follows_a_burst_window_later() {
    let mut world = World::new(goal(1, 100), 40);
    world.goal.scale_down_delay = Duration::ZERO;
    let mut sizes = vec![(0.0, 40)];
    for _ in 0..100 {
        world.follow(2, |_| 10.0);
        if sizes.last().unwrap().1 != world.wanted {
            sizes.push((world.now, world.wanted));
        }
    }
    assert_eq!(
        sizes.iter().map(|(_, n)| *n).collect::<Vec<_>>(),
        [40, 20, 10, 5, 3, 2, 1]
    );
    assert!(
        sizes.windows(2).skip(1).all(|two| two[1].0 - two[0].0 >= 6.0),
        "{sizes:?}"
    );
}

#[test]
fn a_tenth_less_is_no_change() {
    let mut world = World::new(goal(1, 100), 20);
    world.goal.scale_down_delay = Duration::ZERO;
    world.follow(200, |_| 1_600.0);
    let full = world.wanted;
    let decision = world.follow(200, |_| 1_490.0);
    assert_eq!(
        (decision.replicas, decision.reason),
        (full, Reason::Steady),
        "{}",
        decision.why
    );
    let decision = world.follow(200, |_| 1_390.0);
    assert!(decision.replicas < full, "{}", decision.why);
}

#[test]
fn a_ramp_is_ordered_ahead_by_the_time_that_pods_need() {
    let ramp = |t: f64| 400.0 + (t - 120.0).max(0.0) * 4.0;
    let mut world = World::new(goal(1, 100), 6);
    world.follow(120, ramp);
    for _ in 0..200 {
        world.follow(2, ramp);
        let ready = world.pods.iter().filter(|pod| pod.ready <= world.now).count() as f64;
        let carries = ready * THROUGHPUT;
        // Half a window shows the growth, and what was ordered then is there after a start.
        assert!(
            world.now < 184.0 || carries >= ramp(world.now),
            "{} s: {carries} for {}",
            world.now,
            ramp(world.now)
        );
    }
}

#[test]
fn a_step_is_no_growth_wherever_it_lies() {
    let mut world = World::new(goal(1, 100), 38);
    world.follow(120, |_| 300.0);
    // In the middle between two looks, so that half of it shows in the first.
    world.run(1.0, 300.0);
    world.run(1.0, 3_000.0);
    world.scaler.look(world.look());
    for _ in 0..30 {
        let decision = world.watch(2, |_| 3_000.0);
        assert!(decision.replicas <= 38, "{} s: {}", world.now, decision.why);
    }
}

#[test]
fn latency_that_busy_workers_explain_adds_a_replica_and_bounds_the_capacity() {
    let mut world = World::new(goal(1, 100), 10);
    world.follow(60, |_| 750.0);
    // As many requests as ever, and answers take up to 300 ms.
    world.class = 9;
    let decision = world.follow(8, |_| 750.0);
    assert_eq!(
        (decision.replicas, decision.reason),
        (11, Reason::LatencyAbove),
        "{}",
        decision.why
    );
    // What that brings is waited for.
    let decision = world.follow(20, |_| 750.0);
    assert_eq!(
        (decision.replicas, decision.reason),
        (11, Reason::LatencyAbove),
        "{}",
        decision.why
    );
    world.class = 6;
    let decision = world.follow(400, |_| 750.0);
    assert!(decision.figures.capacity.unwrap() < 75.0, "{:?}", decision.figures);
    assert_eq!(decision.replicas, 11, "{}", decision.why);
}

#[test]
fn latency_with_idle_workers_is_said_and_not_scaled() {
    let mut world = World::new(goal(1, 100), 10);
    world.class = 11;
    let decision = world.follow(600, |_| 400.0);
    assert_eq!(decision.reason, Reason::LatencyAbove);
    assert!(decision.why.contains("more replicas do not help"), "{}", decision.why);
    assert!(decision.replicas < 10, "and what is not needed goes: {}", decision.why);
}

#[test]
fn refusals_of_busy_pods_that_never_answered_grow_step_by_step() {
    let mut world = World::new(goal(1, 100), 2);
    let mut last = None;
    for _ in 0..30 {
        world.run(2.0, 0.0);
        for pod in &mut world.pods {
            pod.load.requests += 200;
            pod.load.refused += 200;
            pod.load.busy_seconds += 2.0;
        }
        world.scaler.look(world.look());
        last = Some(world.decide());
        if last.as_ref().unwrap().replicas > 2 {
            break;
        }
    }
    let decision = last.unwrap();
    assert_eq!(
        (decision.replicas, decision.reason),
        (3, Reason::Refused),
        "{}",
        decision.why
    );
    assert_eq!(decision.figures.capacity, None);
}

#[test]
fn what_an_idle_server_shows_does_not_order_more_than_four_times_the_pods() {
    let mut world = World::new(goal(1, 1_000), 2);
    // One at a time takes 50 ms; so an idle server looks like 20 per second.
    world.throughput = 20.0;
    world.follow(120, |_| 10.0);
    world.throughput = 2_000.0;
    world.run(2.0, 1_600.0);
    world.scaler.look(world.look());
    let decision = world.decide();
    assert_eq!(decision.replicas, 8, "{}", decision.why);
    // The next looks show what busy workers do.
    let decision = world.watch(20, |_| 3_000.0);
    assert!(decision.replicas <= 4, "{}", decision.why);
}

#[test]
fn small_batches_of_an_idle_server_do_not_unlearn_what_was_seen_under_load() {
    let mut world = World::new(goal(1, 100), 10);
    world.watch(120, |_| 800.0);
    world.throughput = 20.0;
    let decision = world.watch(600, |_| 40.0);
    assert!(decision.figures.capacity.unwrap() > 85.0, "{:?}", decision.figures);
}

#[test]
fn what_another_version_carries_is_learnt_anew() {
    let mut world = World::new(goal(1, 100), 10);
    world.watch(120, |_| 800.0);
    // Four times as fast: workers are never half busy, which says nothing against what was seen under load.
    world.throughput = 400.0;
    let decision = world.watch(300, |_| 800.0);
    assert!(decision.figures.capacity.unwrap() < 110.0, "{:?}", decision.figures);
    world.scaler.doubt();
    let decision = world.watch(300, |_| 800.0);
    assert!(decision.figures.capacity.unwrap() > 250.0, "{:?}", decision.figures);
    let decision = world.follow(600, |_| 800.0);
    assert!(decision.replicas <= 4, "{}", decision.why);
}

#[test]
fn what_nobody_starts_is_waited_for_before_more_is_asked() {
    let mut world = World::new(
        Goal {
            target_per_replica: Some(100.0),
            ..goal(1, 100)
        },
        10,
    );
    world.watch(60, |_| 800.0);
    // Busy and slow, and the pods are never made: as in `Observe`, or without room.
    world.class = 11;
    let mut wanted = 10;
    for _ in 0..300 {
        world.run(2.0, 800.0);
        world.scaler.look(world.look());
        wanted = world.scaler.decide(&world.goal, wanted, at(world.now)).replicas;
    }
    assert_eq!(wanted, 11);
}

#[test]
fn bounds_hold_and_are_told() {
    let mut world = World::new(goal(3, 6), 4);
    let decision = world.follow(60, |_| 2_000.0);
    let seen = (decision.replicas, decision.reason);
    assert_eq!(seen, (6, Reason::MaximumReached), "{}", decision.why);
    assert!(decision.why.contains("maxReplicas is 6"), "{}", decision.why);
    let decision = world.follow(1_000, |_| 1.0);
    assert_eq!(decision.replicas, 3);
    world.goal.min_replicas = 5;
    for (wanted, bound) in [(9, 6), (3, 5)] {
        world.wanted = wanted;
        world.scaler = Scaler::new(at(world.now));
        let decision = world.decide();
        let seen = (decision.replicas, decision.reason);
        assert_eq!(seen, (bound, Reason::Bounded), "also without data");
    }
}

#[test]
fn objectives_say_what_cannot_be_carried_and_how_many_would() {
    let mut world = World::new(goal(1, 4), 4);
    world.goal.qps = Some(500.0);
    let decision = world.decide();
    assert_eq!(objectives(&world.goal, &decision), Objectives::Unknown);
    let decision = world.follow(120, |_| 250.0);
    let Objectives::OutOfReach { why, replicas } = objectives(&world.goal, &decision) else {
        panic!("{:?}", objectives(&world.goal, &decision));
    };
    assert_eq!(replicas, 6, "{why}");
    assert!(why.contains("raise scaling.maxReplicas"), "{why}");
    world.goal.max_replicas = 6;
    assert_eq!(objectives(&world.goal, &decision), Objectives::Met);
    world.goal.qps = None;
    world.class = 10;
    let decision = world.follow(60, |_| 250.0);
    assert!(matches!(objectives(&world.goal, &decision), Objectives::Missed { .. }));
    world.class = 6;
    let decision = world.follow(120, |_| 2_000.0);
    assert!(matches!(objectives(&world.goal, &decision), Objectives::Missed { why } if why.contains("refused")));
}

/// A sequence of numbers between -1 and 1 that is the same everywhere.
fn noise(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed;
    move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as f64 / f64::from(1_u32 << 31)) * 2.0 - 1.0
    }
}

#[test]
fn noise_of_a_tenth_turns_the_size_at_most_once_in_five_minutes() {
    for (seed, delay, qps) in [
        (1, 300, 1_000.0),
        (2, 0, 1_000.0),
        (3, 0, 70.0),
        (4, 0, 2_870.0),
        (5, 60, 333.0),
    ] {
        let mut next = noise(seed);
        let mut world = World::new(goal(1, 100), 20);
        world.goal.scale_down_delay = Duration::from_secs(delay);
        let mut turns: Vec<f64> = vec![];
        let mut direction = 0;
        for _ in 0..3_600 / 2 {
            let before = world.wanted;
            let load = qps * (1.0 + 0.1 * next());
            world.follow(2, |_| load);
            let step = i64::from(world.wanted) - i64::from(before);
            if step != 0 {
                if direction != 0 && step.signum() != direction {
                    turns.push(world.now);
                }
                direction = step.signum();
            }
        }
        assert!(
            turns.windows(2).all(|two| two[1] - two[0] >= 300.0),
            "{qps}, delay {delay}: {turns:?}"
        );
    }
}

#[test]
fn a_look_taken_twice_or_too_late_changes_nothing() {
    let mut world = World::new(goal(1, 100), 10);
    world.follow(100, |t| 300.0 + t * 3.0);
    let mut twice = world.scaler.clone();
    let older = world.look();
    world.run(2.0, 900.0);
    let look = world.look();
    world.scaler.look(look.clone());
    for look in [&look, &look, &older, &look] {
        twice.look(look.clone());
    }
    for _ in 0..3 {
        let now = at(world.now);
        let decision = world.scaler.decide(&world.goal, world.wanted, now);
        assert_eq!(twice.decide(&world.goal, world.wanted, now), decision);
        world.run(2.0, 900.0);
        world.scaler.look(world.look());
        twice.look(world.look());
    }
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut world = World::new(goal(1, 100), 5);
    for window in [60, 3_600] {
        world.goal.stable_window = Duration::from_secs(window);
        world.goal.scale_down_delay = Duration::from_secs(3_600);
        let mut most = 0;
        for _ in 0..4_000 {
            world.run(1.0, 300.0);
            world.scaler.look(world.look());
            let decision = world.decide();
            assert!((decision.figures.qps.unwrap_or(300.0) - 300.0).abs() < 3.0);
            most = most.max(world.scaler.watch.samples() + world.scaler.loads.pieces.len());
        }
        assert!(most <= 480, "{window}: {most}");
    }
}

/// What happens in a step of the properties: requests per second, seconds since the last look, pods that are silent, that
/// are not asked, whose counters begin anew, and pods that go.
type Step = (f64, f64, Vec<bool>, Vec<bool>, Option<usize>, Option<usize>);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pods = || prop::collection::vec(prop::bool::weighted(0.2), 8);
    let some = || prop::option::weighted(0.1, 0_usize..8);
    let load = prop_oneof![Just(0.0), 0.0..100.0, 0.0..5_000.0];
    prop::collection::vec((load, 0.5..40.0, pods(), pods(), some(), some()), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever pods say, and however they come and go.
    #[test]
    fn decisions_lie_within_the_bounds_and_without_answers_the_size_stays(
        steps in steps(),
        (min, more) in (0_u32..5, 0_u32..40),
        target in prop::option::of(0.5..200.0),
        concurrency in any::<bool>(),
        delay in prop_oneof![Just(0_u64), Just(60), Just(300)],
    ) {
        let mut world = World::new(goal(min, min + more), min.max(1));
        world.goal.target_per_replica = target;
        world.goal.metric = if concurrency { Metric::Concurrency } else { Metric::Qps };
        world.goal.scale_down_delay = Duration::from_secs(delay);
        for (qps, seconds, silent, skipped, anew, gone) in steps {
            world.run(seconds, qps);
            if let Some(pod) = gone.filter(|gone| *gone < world.pods.len()) {
                world.pods.remove(pod);
            }
            for (i, pod) in world.pods.iter_mut().enumerate() {
                pod.silent = silent.get(i).copied().unwrap_or_default();
                pod.asked = !skipped.get(i).copied().unwrap_or_default();
            }
            if let Some(pod) = anew.and_then(|anew| world.pods.get_mut(anew)) {
                pod.load = Load { workers: 1, ..Load::default() };
            }
            let look = world.look();
            let answers = look.ready.iter().any(|pod| matches!(pod.said, Said::Load(_)));
            world.scaler.look(look);
            let before = world.wanted;
            let decision = world.decide();
            prop_assert!((min..=min + more).contains(&decision.replicas), "{}", decision.why);
            if !answers {
                prop_assert_eq!(decision.replicas, before.max(min).min(min + more), "{}", decision.why);
            }
            world.wanted = decision.replicas;
            world.resize(world.now);
        }
    }

    /// A load that holds for a while is carried, whatever came before it and however low the delay: what a replica does is
    /// known, so the need is.
    #[test]
    fn the_size_is_never_below_what_the_present_load_needs(
        loads in prop::collection::vec((10.0..4_000.0, 1_u32..60), 1..12),
        target in prop::option::of(20.0..90.0),
        delay in prop_oneof![Just(0_u64), Just(60), Just(300)],
    ) {
        let mut world = World::new(goal(1, 1_000), 5);
        world.goal.target_per_replica = target;
        world.goal.scale_down_delay = Duration::from_secs(delay);
        world.start = 4.0;
        world.follow(60, |_| 350.0);
        for (qps, looks) in loads {
            for look in 0..looks {
                let decision = world.follow(2, |_| qps);
                if let Some(capacity) = decision.figures.capacity {
                    let stable = decision.figures.qps.unwrap();
                    let each = target.unwrap_or(capacity);
                    prop_assert!(f64::from(decision.replicas) * each + 0.001 >= stable, "{look}: {}", decision.why);
                    // Beyond what counting may miss, also what this very moment brings.
                    let surely = qps * (1.0 - 4.0 / qps.sqrt());
                    prop_assert!(f64::from(decision.replicas) * each >= surely.min(qps * 0.9), "{look}: {qps} {}", decision.why);
                }
            }
        }
    }
}
