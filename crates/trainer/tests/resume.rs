//! A training that is killed, stopped, replaced or let down by its storage goes on from its newest checkpoint and ends
//! with the artifact of one that nothing happened to, bit for bit.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

#[path = "../../store/tests/faults/mod.rs"]
mod faults;

mod common;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Ended, Running, World, get, rows, says};
use faults::{Fault, Server};
use flywheel_contract::checkpoint::Head;
use flywheel_contract::failure::FailureReason as R;
use flywheel_contract::scalar::Digest;
use flywheel_contract::termination::Position;
use flywheel_contract::trainer::TrainingResult;
use serde_json::{Value, json};

/// Epochs that are allowed; early stopping ends the job long before.
const EPOCHS: u64 = 1000;

/// A world with a job of a few seconds: dropout is on, early stopping ends it, and the best epoch lies well before that.
fn world() -> (World, Value) {
    let world = World::new();
    let mut text = String::new();
    for (i, line) in rows(240).lines().enumerate() {
        // Every fifth label is wrong, so that there is something to learn too well.
        let wrong = i > 0 && i % 5 == 0;
        text += &if wrong {
            line.replace(",light", ",weather").replace(",music", ",light")
        } else {
            line.to_owned()
        };
        text.push('\n');
    }
    world.write("data.csv", text);
    let mut config = world.config();
    config["hyperparameters"] = json!({
        "epochs": EPOCHS, "batchSize": 8, "learningRate": "3e-3", "maxLength": 16, "dropout": "0.1", "seed": 7, "precision": "Float32",
        "earlyStopping": {"metric": "loss", "patience": 40},
    });
    config["checkpoint"] = json!({"intervalSeconds": 1, "keep": 3});
    (world, config)
}

/// The cores that this process may use.
fn cores() -> Vec<usize> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let list = status
        .lines()
        .find_map(|l| l.strip_prefix("Cpus_allowed_list:"))
        .unwrap();
    let mut cores = Vec::new();
    for part in list.trim().split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        cores.extend(from.parse::<usize>().unwrap()..=to.parse().unwrap());
    }
    cores
}

/// Random numbers from a seed that differs from run to run and is printed.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let seed = RandomState::new().build_hasher().finish();
        println!("seed {seed}");
        Self(seed)
    }

    /// Between nothing and so long.
    fn within(&mut self, most: Duration) -> Duration {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        most.mul_f64((self.0 >> 11) as f64 / (1_u64 << 53) as f64)
    }
}

fn message<'a>(line: &'a Value, text: &str) -> Option<&'a Value> {
    (line["message"] == text).then_some(line)
}

fn writing(line: &Value) -> Option<u64> {
    message(line, "writing a checkpoint")?["step"].as_u64()
}

fn committed(line: &Value) -> Option<u64> {
    message(line, "checkpoint is committed")?["step"].as_u64()
}

fn resumed(line: &Value) -> Option<u64> {
    message(line, "going on from a checkpoint")?["step"].as_u64()
}

fn lines(ended: &Ended) -> impl Iterator<Item = Value> {
    ended.stderr.lines().filter_map(|line| serde_json::from_str(line).ok())
}

fn attempt(config: &Value, uid: &str, attempt: usize) -> Value {
    let mut config = config.clone();
    config["job"]["uid"] = uid.into();
    config["job"]["attempt"] = attempt.into();
    config
}

/// The result of a job but for what differs from run to run. It may be that of an attempt that was killed after its commit:
/// the next one ends with it.
fn result(world: &World, uid: &str) -> TrainingResult {
    let named = head(world, uid).result.expect("HEAD names a result");
    let mut result: TrainingResult = world.read(&format!("out/{uid}/{}", named.path));
    result.job.uid = String::new();
    result.job.attempt = 0;
    result.artifact.uri = "".into();
    for example in &mut result.examples {
        example.first.uri = "".into();
        example.second.uri = "".into();
    }
    result.train_seconds = 0.0;
    result
}

/// The highest generation of `HEAD`.
fn head(world: &World, uid: &str) -> Head {
    let newest = world.files(&format!("out/{uid}/HEAD")).pop().expect("there is a HEAD");
    world.read(&format!("out/{uid}/HEAD/{newest}"))
}

/// One that nothing happens to, on one core: its result, and the time that it took to the first step.
fn undisturbed(world: &World, config: &Value, core: usize) -> (TrainingResult, Duration) {
    let start = Instant::now();
    let running = world.start_on(Some(core), &attempt(config, "whole", 1));
    let ended = world.left(running);
    ended.trained();
    let took = start.elapsed();
    let text = std::fs::read(world.path("out/whole/attempt-1.result.json")).unwrap();
    let seconds = serde_json::from_slice::<TrainingResult>(&text).unwrap().train_seconds;
    let result = result(world, "whole");
    let epochs = result.epochs.len() as u64;
    assert!(
        epochs < EPOCHS && u64::from(result.best_epoch) < epochs,
        "early stopping ends it, and the best epoch is not the last"
    );
    (result, took.saturating_sub(Duration::from_secs_f64(seconds)))
}

/// So many kills as `KILLS` says: `make test-all` takes a hundred.
#[test]
fn kills_at_any_moment_change_no_bit() {
    let asked = std::env::var("KILLS").unwrap_or_default();
    let most: usize = if asked.is_empty() { 30 } else { asked.parse().unwrap() };
    // Of them while a checkpoint is being written.
    let most_inside = most.div_ceil(10);
    /// So many at most per job, so that it comes to an end.
    const PER_JOB: usize = 25;
    let (kills, inside, resumes, jobs) = (
        AtomicUsize::new(0),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    let results: Mutex<Vec<TrainingResult>> = Mutex::default();
    let lane = |core: usize| {
        let (world, config) = world();
        let mut dice = Dice::new();
        let (whole, startup) = undisturbed(&world, &config, core);
        results.lock().unwrap().push(whole.clone());
        while kills.load(Ordering::SeqCst) < most || inside.load(Ordering::SeqCst) < most_inside {
            let uid = format!("job-{core}-{}", jobs.fetch_add(1, Ordering::SeqCst));
            let mut number = 0;
            loop {
                number += 1;
                let mut running = world.start_on(Some(core), &attempt(&config, &uid, number));
                if number <= PER_JOB {
                    // Any moment from the start of the process to well after its first checkpoint; every fifth time one
                    // within a checkpoint.
                    if number % 5 == 0 {
                        running.wait_for_or_end(writing);
                        std::thread::sleep(dice.within(Duration::from_millis(60)));
                    } else {
                        std::thread::sleep(dice.within(startup + Duration::from_millis(1800)));
                    }
                    let _ = running.child.kill();
                }
                let ended = world.left(running);
                resumes.fetch_add(
                    usize::from(lines(&ended).any(|l| resumed(&l).is_some())),
                    Ordering::SeqCst,
                );
                if ended.code == Some(0) {
                    ended.trained();
                    break;
                }
                assert_eq!(ended.code, None, "it was killed: {ended:#?}");
                kills.fetch_add(1, Ordering::SeqCst);
                let open = lines(&ended).filter(|l| writing(l).is_some()).count()
                    - lines(&ended).filter(|l| committed(l).is_some()).count();
                inside.fetch_add(open, Ordering::SeqCst);
            }
            assert!(
                result(&world, &uid) == whole,
                "{uid}: the result differs after {} kills",
                number - 1
            );
            assert!(
                !world.path(&format!("out/{uid}/checkpoints")).exists()
                    || world.files(&format!("out/{uid}/checkpoints")).is_empty(),
                "{uid}: checkpoints are left"
            );
        }
    };
    let start = Instant::now();
    std::thread::scope(|scope| {
        let lanes: Vec<_> = cores()
            .into_iter()
            .take(2)
            .map(|core| scope.spawn(move || lane(core)))
            .collect();
        lanes.into_iter().for_each(|lane| lane.join().unwrap());
    });
    let results = results.into_inner().unwrap();
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
    println!(
        "{} kills, {} of them inside a checkpoint, {} resumes, {} jobs, artifact {}, {:?}",
        kills.into_inner(),
        inside.into_inner(),
        resumes.into_inner(),
        jobs.into_inner(),
        results[0].artifact.digest,
        start.elapsed()
    );
}

#[test]
fn sigterm_saves_the_last_step_and_the_next_attempt_goes_on_from_it() {
    let (world, mut config) = world();
    let core = cores()[0];
    let (whole, _) = undisturbed(&world, &config, core);
    // No checkpoint comes of itself.
    config["checkpoint"]["intervalSeconds"] = 3600.into();
    let mut from = None;
    for number in 1..=3 {
        let running = world.start_on(Some(core), &attempt(&config, "u", number));
        let address = running.address();
        if let Some(step) = from {
            assert_eq!(running.wait_for("the resume", resumed), step);
        }
        // Somewhere within its steps, one third of the way further each time.
        let reached = number as u64 * whole.steps / 4;
        running.progress_until(&address, |p| p["step"].as_u64() >= Some(reached));
        let progress = running.progress_until(&address, |_| true);
        assert_eq!(progress["resumedFromStep"].as_u64(), from);
        let start = Instant::now();
        running.signal("TERM");
        let ended = world.left(running);
        assert!(start.elapsed() < Duration::from_secs(25), "{:?}", start.elapsed());
        says(ended.failed(), R::Interrupted, &["SIGTERM", "goes on from step"]);
        let position = ended.position.unwrap();
        assert!(position.step >= reached && position.step < whole.steps, "{position:?}");
        assert_eq!(position.checkpoint_step, position.step, "the last step is saved");
        assert_eq!(
            (Some(position.resumed_from_step), position.head_attempt),
            (from.or(Some(0)), number as u32)
        );
        assert_eq!(lines(&ended).find_map(|l| writing(&l)), Some(position.step));
        assert!(lines(&ended).any(|l| l["phase"] == "Checkpointing"));
        from = Some(position.step);
    }
    let running = world.start_on(Some(core), &attempt(&config, "u", 4));
    assert_eq!(Some(running.wait_for("the resume", resumed)), from);
    let ended = world.left(running);
    ended.trained();
    assert!(result(&world, "u") == whole);
    assert_eq!(ended.position.unwrap().resumed_from_step, from.unwrap());
    assert!(head(&world, "u").checkpoints.is_empty(), "nothing needs them any more");
}

#[test]
fn sigterm_before_there_is_a_state_and_while_the_storage_hangs() {
    // The pretrained weights never come: there is nothing to save.
    let (world, server) = (World::new(), Server::start());
    let mut config = world.config();
    config["storage"]["endpoint"] = server.url().into();
    config["outputUri"] = "s3://out/intent".into();
    let mut waiting = config.clone();
    waiting["model"]["pretrained"]["uri"] = "s3://models/bert".into();
    server.fault("GET /models/", Fault::Hang, usize::MAX);
    let running = world.start(&waiting);
    running.wait_for("a phase", |l| (l["phase"] == "Downloading").then_some(()));
    let start = Instant::now();
    running.signal("TERM");
    let ended = world.left(running);
    says(ended.failed(), R::Interrupted, &["SIGTERM", "begins at its beginning"]);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(ended.position.unwrap().head_attempt, 1);

    // The storage takes no checkpoint any more: the pod ends in time all the same, and says so.
    config["hyperparameters"]["epochs"] = EPOCHS.into();
    config["job"]["attempt"] = 2.into();
    let running = world.start(&config);
    running.wait_for("an epoch", |l| message(l, "epoch").map(|_| ()));
    server.fault("PUT /out/intent/uid-1/checkpoints/", Fault::Hang, usize::MAX);
    let start = Instant::now();
    running.signal("TERM");
    let ended = world.left(running);
    assert!(start.elapsed() < Duration::from_secs(29), "{:?}", start.elapsed());
    says(
        ended.failed(),
        R::Interrupted,
        &["could not be saved", "begins at its beginning"],
    );
    let position = ended.position.unwrap();
    assert!(position.step > 0 && position.checkpoint_step == 0, "{position:?}");
}

#[test]
fn sigterm_after_the_last_step_lets_it_finish() {
    let (world, server) = (World::new(), Server::start());
    let mut config = world.config();
    config["storage"]["endpoint"] = server.url().into();
    config["outputUri"] = "s3://out/intent".into();
    server.fault("PUT /out/intent/uid-1/attempt-1/", Fault::Status(503), usize::MAX);
    let running = world.start(&config);
    running.wait_for("the upload", |l| (l["phase"] == "Uploading").then_some(()));
    running.signal("TERM");
    running.wait_for("the signal", |l| message(l, "told to end").map(|_| ()));
    server.heal();
    let ended = world.left(running);
    ended.trained();
    assert!(server.get("out/intent/uid-1/attempt-1.result.json").is_some());
}

#[test]
fn an_attempt_that_was_replaced_ends_and_commits_nothing() {
    let (world, config) = world();
    let first = world.start(&attempt(&config, "u", 1));
    first.wait_for("a checkpoint", committed);
    // Its successor takes over while it sleeps, as a pod on a node that was cut off does.
    first.signal("STOP");
    let second = world.start(&attempt(&config, "u", 2));
    second.wait_for("the takeover", |l| message(l, "took the checkpoints over").map(|_| ()));
    let before = head(&world, "u");
    let known: Vec<String> = before.checkpoints.iter().map(|c| c.name.clone()).collect();
    assert!((before.attempt, before.checkpoints.len()) >= (2, 1), "{before:?}");
    first.signal("CONT");
    let fenced = world.left(first);
    says(fenced.failed(), R::Fenced, &["attempt 2"]);
    let position = fenced.position.unwrap();
    assert_eq!(position.head_attempt, 2);
    assert!(
        position.step >= position.checkpoint_step && position.checkpoint_step > 0,
        "{position:?}"
    );
    let after = head(&world, "u");
    assert_eq!((after.attempt, after.writer.as_str()), (2, before.writer.as_str()));
    for checkpoint in &after.checkpoints {
        let of_first = checkpoint.name.split('-').nth(1) == Some("1");
        assert!(
            !of_first || known.contains(&checkpoint.name),
            "{checkpoint:?} came late"
        );
    }
    // The first one comes back: it may not even begin. The second sleeps, so that it does not write its message meanwhile.
    second.signal("STOP");
    let late = world.train(&attempt(&config, "u", 1));
    second.signal("CONT");
    says(late.failed(), R::Fenced, &["attempt 2"]);
    assert_eq!(late.position.unwrap().head_attempt, 2);

    let ended = world.left(second);
    ended.trained();
    let result: TrainingResult = world.read("out/u/attempt-2.result.json");
    assert_eq!(result.artifact, ended.trained().artifact);
    assert!(!world.path("out/u/attempt-1.result.json").exists());
}

/// Kills a first attempt once it has `count` checkpoints; returns their steps, newest first.
fn killed_with(world: &World, config: &Value, count: usize) -> Vec<u64> {
    let mut running = world.start_on(Some(cores()[0]), config);
    for _ in 0..count {
        running.wait_for("a checkpoint", committed);
    }
    running.child.kill().unwrap();
    world.left(running);
    let uid = config["job"]["uid"].as_str().unwrap();
    head(world, uid).checkpoints.iter().map(|c| c.step).collect()
}

#[test]
fn a_broken_checkpoint_is_passed_over_for_the_one_before() {
    let (world, config) = world();
    let core = cores()[0];
    let (whole, _) = undisturbed(&world, &config, core);
    let steps = killed_with(&world, &attempt(&config, "u", 1), 2);
    let newest = world.path(&format!(
        "out/u/checkpoints/{}/model.safetensors",
        head(&world, "u").checkpoints[0].name
    ));
    let mut bytes = std::fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&newest, bytes).unwrap();

    let running = world.start_on(Some(core), &attempt(&config, "u", 2));
    let address = running.address();
    assert_eq!(running.wait_for("the resume", resumed), steps[1]);
    let progress = running.progress_until(&address, |p| p["step"].as_u64() > Some(steps[1]));
    let checkpoint = &progress["checkpoint"];
    assert_eq!(
        (checkpoint["invalid"].as_u64(), checkpoint["failures"].as_u64()),
        (Some(1), Some(0))
    );
    assert!(
        checkpoint["problem"].as_str().unwrap().contains("model.safetensors"),
        "{checkpoint}"
    );
    world.left(running).trained();
    assert!(result(&world, "u") == whole);
}

#[test]
fn a_damaged_or_missing_head_is_told_and_loses_no_checkpoint() {
    let (world, config) = world();
    let core = cores()[0];
    let (whole, _) = undisturbed(&world, &config, core);
    for (uid, words, ruin) in [
        ("torn", "cannot be read", tear as fn(PathBuf)),
        ("removed", "it is missing", |heads| {
            std::fs::remove_dir_all(heads).unwrap()
        }),
    ] {
        let steps = killed_with(&world, &attempt(&config, uid, 1), 2);
        ruin(world.path(&format!("out/{uid}/HEAD")));

        let running = world.start_on(Some(core), &attempt(&config, uid, 2));
        let address = running.address();
        assert_eq!(running.wait_for("the resume", resumed), steps[0]);
        let progress = running.progress_until(&address, |p| p["step"].as_u64() > Some(steps[0]));
        let checkpoint = &progress["checkpoint"];
        assert_eq!(
            (checkpoint["headDamaged"].as_bool(), checkpoint["invalid"].as_u64()),
            (Some(true), Some(0))
        );
        assert!(checkpoint["problem"].as_str().unwrap().contains(words), "{checkpoint}");
        world.left(running).trained();
        assert!(result(&world, uid) == whole);
    }
}

/// Cuts the newest generation.
fn tear(heads: PathBuf) {
    let newest = std::fs::read_dir(heads)
        .unwrap()
        .map(|e| e.unwrap().path())
        .max()
        .unwrap();
    let bytes = std::fs::read(&newest).unwrap();
    std::fs::write(&newest, &bytes[..bytes.len() / 2]).unwrap();
}

#[test]
fn state_of_other_data_or_settings_is_kept_and_the_training_refused() {
    let (world, config) = world();
    let data = std::fs::read(world.path("data.csv")).unwrap();
    type Change = fn(&World, &mut Value);
    let changes: [(&str, &[&str], Change); 3] = [
        (
            "data",
            &["the sources of the data set have other content now"],
            |w, _| w.write("data.csv", rows(60)),
        ),
        ("rate", &["learningRate was 3e-3 and is 1e-3 now"], |_, c| {
            c["hyperparameters"]["learningRate"] = "1e-3".into();
        }),
        (
            "two",
            &[
                "epochs was 1000 and is 3 now",
                "precision was Float32 and is BFloat16 now",
            ],
            |_, c| {
                c["hyperparameters"]["epochs"] = 3.into();
                c["hyperparameters"]["precision"] = "BFloat16".into();
            },
        ),
    ];
    for (uid, words, change) in changes {
        let steps = killed_with(&world, &attempt(&config, uid, 1), 1);
        let folder = format!("out/{uid}/checkpoints");
        let kept = world.files(&folder);
        let mut changed = attempt(&config, uid, 2);
        change(&world, &mut changed);
        let refused = world.train(&changed);
        let step = format!("step {}", steps[0]);
        let remedies = ["Put back what was changed", "another metadata.uid", &step];
        let all: Vec<&str> = words.iter().copied().chain(remedies).collect();
        says(refused.failed(), R::TrainingChanged, &all);
        assert!(world.files(&folder) == kept, "{uid}: nothing is written or removed");

        world.write("data.csv", &data);
        let running = world.start(&attempt(&config, uid, 3));
        assert_eq!(running.wait_for("the resume", resumed), steps[0], "{uid}");
    }
}

#[test]
fn a_full_scratch_volume_stops_no_training() {
    let (world, mut config) = world();
    config["hyperparameters"]["earlyStopping"] = Value::Null;
    let scratch = world.path("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let trainer = world.command(&["train", "--listen", "127.0.0.1:0"]);
    // A volume of 2 MiB that only the program sees; `exec` keeps its process id.
    let mut command = std::process::Command::new("unshare");
    command
        .args(["--mount", "--map-root-user", "sh", "-c"])
        .arg("mount -t tmpfs -o size=2m scratch \"$0\" && exec \"$@\" --scratch \"$0\"")
        .arg(&scratch)
        .arg(trainer.get_program())
        .args(
            trainer
                .get_args()
                .filter(|a| *a != "--scratch" && *a != world.dir.path()),
        )
        .env("GOMP_SPINCOUNT", "300")
        .env("FLYWHEEL_CONFIG", config.to_string());
    let running = Running::start(command);
    let address = running.address();
    running.wait_for("a checkpoint", committed);
    // The test sees the volume through the process.
    let inside = PathBuf::from(format!("/proc/{}/root{}", running.child.id(), scratch.display()));
    let filler = inside.join("filler");
    let full = std::fs::write(&filler, vec![1; 4 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let progress = running.progress_until(&address, |p| p["checkpoint"]["failures"].as_u64() > Some(0));
    assert!(
        progress["checkpoint"]["problem"]
            .as_str()
            .unwrap()
            .contains("No space left"),
        "{progress}"
    );
    assert_eq!(progress["phase"], "Training");
    let step = progress["step"].as_u64().unwrap();
    running.progress_until(&address, |p| p["step"].as_u64() > Some(step));
    let metrics = get(&address, "/metrics");
    let failures = metrics
        .lines()
        .find_map(|l| l.strip_prefix("flywheel_trainer_checkpoint_failures_total "))
        .unwrap();
    assert!(failures.parse::<u64>().unwrap() > 0);

    std::fs::remove_file(&filler).unwrap();
    let progress = running.progress_until(&address, |p| p["checkpoint"]["failures"].as_u64() == Some(0));
    assert!(progress["checkpoint"]["step"].as_u64() > Some(step), "{progress}");
    assert!(progress["checkpoint"]["problem"].is_null(), "{progress}");
}

/// The kubelet hands over the end of the log of a pod that left no message.
#[test]
fn a_crash_tells_its_step_in_the_last_line_of_the_log() {
    let (world, mut config) = world();
    config["hyperparameters"]["earlyStopping"] = Value::Null;
    config["hyperparameters"]["epochs"] = 1000.into();
    for name in ["SEGV", "ABRT"] {
        let running = world.start(&attempt(&config, name, 1));
        let address = running.address();
        let progress = running.progress_until(&address, |p| p["checkpoint"]["ageSeconds"].is_number());
        running.signal(name);
        let ended = world.left(running);
        assert_eq!(ended.code, None, "{name}: it ends by the signal, as without the line");
        assert!(ended.message.is_none(), "{name}: {:?}", ended.message);
        let position = Position::in_log(&ended.stderr).unwrap_or_else(|| panic!("{name}: {}", ended.stderr));
        assert!(
            Some(position.step) >= progress["step"].as_u64()
                && Some(position.checkpoint_step) >= progress["checkpoint"]["step"].as_u64()
                && position.checkpoint_step <= position.step
                && position.head_attempt == 1,
            "{name}: {position:?} {progress}"
        );
    }
}

#[test]
fn checkpoints_show_in_progress_and_metrics() {
    let (world, mut config) = world();
    config["hyperparameters"]["earlyStopping"] = Value::Null;
    config["checkpoint"]["uri"] = world.uri("elsewhere").into();
    let running = world.start(&config);
    let address = running.address();
    let progress = running.progress_until(&address, |p| p["checkpoint"]["ageSeconds"].is_number());
    let step = progress["checkpoint"]["step"].as_u64().unwrap();
    assert!(step > 0 && Some(step) <= progress["step"].as_u64(), "{progress}");
    assert!(progress["checkpoint"]["ageSeconds"].as_f64() < Some(60.0), "{progress}");
    let median = progress["medianPassSeconds"].as_f64().unwrap();
    let heartbeat = progress["heartbeatSeconds"].as_f64().unwrap();
    assert!(median > 0.0 && median < 10.0 && heartbeat < 10.0, "{progress}");
    let metrics = get(&address, "/metrics");
    for (name, least) in [
        ("flywheel_trainer_checkpoints_total ", 1.0),
        ("flywheel_trainer_checkpoint_failures_total ", 0.0),
        ("flywheel_trainer_checkpoint_write_seconds_total ", 1e-6),
        ("flywheel_trainer_checkpoint_stall_seconds_total ", 1e-9),
        ("flywheel_trainer_checkpoint_written_bytes_total ", 1000.0),
    ] {
        let value = metrics
            .lines()
            .find_map(|l| l.strip_prefix(name))
            .unwrap_or_else(|| panic!("{name}: {metrics}"));
        assert!(value.parse::<f64>().unwrap() >= least, "{name}{value}");
    }
    // The checkpoints lie where the spec says.
    assert!(world.path("elsewhere/uid-1/checkpoints").exists() && !world.path("out/uid-1/checkpoints").exists());
}

#[test]
fn killed_on_an_object_store_it_goes_on_as_well() {
    let (world, mut config) = world();
    let server = Server::start();
    config["storage"]["endpoint"] = server.url().into();
    config["outputUri"] = "s3://out/intent".into();
    let core = cores()[0];
    let digest = |ended: &Ended| -> Digest { ended.trained().artifact.digest.clone() };
    let running = world.start_on(Some(core), &attempt(&config, "whole", 1));
    let whole = digest(&world.left(running));
    let mut running = world.start_on(Some(core), &attempt(&config, "u", 1));
    let step = running.wait_for("a checkpoint", committed);
    running.child.kill().unwrap();
    world.left(running);
    // Storage that fails now and then is part of it.
    for part in [
        "GET /out/intent/u/HEAD",
        "PUT /out/intent/u/HEAD",
        "PUT /out/intent/u/checkpoints/",
    ] {
        server.fault(part, Fault::Status(503), 1);
        server.fault(part, Fault::Close, 1);
    }
    let running = world.start_on(Some(core), &attempt(&config, "u", 2));
    assert!(running.wait_for("the resume", resumed) >= step);
    assert_eq!(digest(&world.left(running)), whole);
    let keys = server.keys();
    assert!(!keys.iter().any(|k| k.contains("/checkpoints/")), "{keys:#?}");
    assert!(keys.iter().any(|k| k == "/out/intent/u/attempt-2.result.json"));
}

/// Bytes that come are a sign of work, a silent storage is none.
#[test]
fn the_heartbeat_follows_what_the_storage_sends() {
    let (world, server) = (World::new(), Server::start());
    let mut config = world.config();
    config["storage"]["endpoint"] = server.url().into();
    config["dataset"]["sources"][0]["uri"] = "s3://data/train.csv".into();
    server.put("data/train.csv", rows(3000));
    for (fault, alive) in [(Fault::Slow(100, 50), true), (Fault::Hang, false)] {
        server.heal();
        server.fault("GET /data/", fault, usize::MAX);
        let running = world.start(&config);
        let address = running.address();
        let old = |p: &Value| p["phase"] == "Downloading" && p["phaseSeconds"].as_f64() > Some(0.8);
        let progress = running.progress_until(&address, old);
        let heartbeat = progress["heartbeatSeconds"].as_f64().unwrap();
        assert_eq!(heartbeat < 0.5, alive, "{fault:?}: {progress}");
    }
}

/// With more threads sums may be taken in another order. The difference is measured here and held to a bound.
#[test]
fn with_all_cores_the_difference_is_small() {
    let (world, config) = world();
    let weights = |uid: &str, number: usize| -> Vec<f32> {
        let bytes = std::fs::read(world.path(&format!("out/{uid}/attempt-{number}/model.safetensors"))).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut names = file.names();
        names.sort_unstable();
        let numbers = |name: &&str| -> Vec<f32> {
            let data = file.tensor(name).unwrap().data().to_vec();
            data.chunks(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect()
        };
        names.iter().flat_map(numbers).collect()
    };
    world.left(world.start(&attempt(&config, "whole", 1))).trained();
    let mut running = world.start(&attempt(&config, "u", 1));
    running.wait_for("a checkpoint", committed);
    running.wait_for("a checkpoint", committed);
    running.child.kill().unwrap();
    world.left(running);
    let running = world.start(&attempt(&config, "u", 2));
    running.wait_for("the resume", resumed);
    world.left(running).trained();
    let (whole, resumed) = (weights("whole", 1), weights("u", 2));
    let largest = whole.iter().fold(0f32, |m, w| m.max(w.abs()));
    let difference = whole.iter().zip(&resumed).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    println!(
        "{} cores: largest difference {difference:e} of weights up to {largest}",
        cores().len()
    );
    assert!(
        whole.len() == resumed.len() && difference <= 1e-3 * largest,
        "{difference}"
    );
}
