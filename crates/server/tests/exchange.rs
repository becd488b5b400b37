//! The program, while the versions that it is to hold change: what answers, what it says, and what goes on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "common/artifact.rs"]
mod fixture;
#[path = "common/program.rs"]
mod process;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::{Connection, counted, get, post, predict, until, with_headers};
use fixture::{Artifact, Behaviour, LABELS, Setup, Storage};
use flywheel_contract::artifact::{DATA_PROFILE_FILE, EVALUATION_SAMPLE_FILE, WEIGHTS_FILE};
use flywheel_contract::failure::FailureReason;
use flywheel_contract::profile::{DataProfile, PROJECTIONS, most_probable};
use flywheel_contract::serving::{
    Agreement, Assignment, Canary, Cleared, Crash, LabelsBeside, Likeness, LoadState, Mirror, ServedVersion, Stats,
};
use flywheel_contract::split::Split;
use process::{Program, assert_fails};
use rustix::process::Signal;
use serde_json::{Value, json};

const TEXT: &str = "send my money back, please";

/// An assignment of these versions, of which the first or the named one answers.
fn assignment(generation: u64, serve: &str, versions: &[&ServedVersion]) -> Assignment {
    Assignment {
        schema_version: flywheel_contract::SCHEMA_VERSION,
        generation,
        serve: serve.to_owned(),
        versions: versions.iter().map(|v| (*v).clone()).collect(),
        split: None,
        mirror: None,
        canary: None,
        cleared: Vec::new(),
        window_seconds: None,
        judged_since: None,
        trial: None,
    }
}

/// Two versions that answer the same text differently.
struct Two {
    one: Artifact,
    two: Artifact,
}

impl Two {
    fn new() -> Self {
        let two = Self {
            one: Artifact::of_seed(7),
            two: Artifact::of_seed(11),
        };
        let answers = [&two.one, &two.two].map(|artifact| artifact.direct(&[TEXT]).remove(0));
        let apart = answers[0].iter().zip(&answers[1]).map(|(a, b)| (a - b).abs());
        assert!(
            apart.fold(0.0, f32::max) > 0.05,
            "{answers:?}: too alike to be told apart"
        );
        two
    }

    fn versions(&self) -> (ServedVersion, ServedVersion) {
        (
            self.one.version("intent-v1", &self.one.uri()),
            self.two.version("intent-v2", &self.two.uri()),
        )
    }

    /// The first one answers, and the second one comes by steps to the pod `mine`, with so many of its buckets.
    fn by_steps(&self, generation: u64, share: u16) -> Assignment {
        let (one, other) = self.versions();
        Assignment {
            canary: Some(Canary {
                version: other,
                step: 0,
                since: None,
                pods: [("mine".to_owned(), share)].into(),
            }),
            ..assignment(generation, "intent-v1", &[&one])
        }
    }

    fn setup(&self) -> Setup {
        let (one, _) = self.versions();
        Setup {
            assignment: assignment(1, "intent-v1", &[&one]),
            ..self.one.setup(&self.one.uri())
        }
    }

    /// That the probabilities are those of the version that the answer names; its name.
    fn check(&self, answer: &Value, exact: &[Vec<f32>; 2]) -> String {
        let version = answer["model_version"].as_str().unwrap().to_owned();
        let want = match version.as_str() {
            "intent-v1" => &exact[0],
            "intent-v2" => &exact[1],
            other => panic!("{other} answers"),
        };
        for (label, want) in LABELS.iter().zip(want) {
            let got = answer["all_probs"][label].as_f64().unwrap();
            assert!(
                (got - f64::from(*want)).abs() < 1e-5,
                "{version}: {label}: {got}, not {want}"
            );
        }
        version
    }

    fn exact(&self) -> [Vec<f32>; 2] {
        [&self.one, &self.two].map(|artifact| artifact.direct(&[TEXT]).remove(0))
    }
}

fn state(stats: &Stats, version: &str) -> Option<LoadState> {
    stats.versions.iter().find(|v| v.name == version).map(|v| v.state)
}

fn answers_with(program: &Program, version: &str) {
    until("the version answers", || {
        let stats = program.stats();
        let whole = stats.versions.len() == 1 && state(&stats, version) == Some(LoadState::Ready);
        (stats.serving.as_deref() == Some(version) && whole).then_some(())
    });
}

#[test]
fn versions_change_over_under_load_and_no_request_notices() {
    let two = Arc::new(Two::new());
    let (one, other) = two.versions();
    let program = Program::ready(&two.setup());
    let exact = two.exact();
    let over = Arc::new(AtomicBool::new(false));
    // What each client was answered with last.
    let lasts: Vec<Arc<Mutex<String>>> = (0..4).map(|_| Arc::default()).collect();
    let clients: Vec<_> = lasts
        .iter()
        .map(|last| {
            let (two, over, exact, address) = (Arc::clone(&two), Arc::clone(&over), exact.clone(), program.data);
            let last = Arc::clone(last);
            thread::spawn(move || {
                let request = post("/predict", json!({ "text": TEXT }).to_string().as_bytes());
                let mut connection = Connection::open(address);
                let mut seen = [0; 2];
                let mut changes = 0;
                while !over.load(Ordering::Relaxed) {
                    connection.send(&request);
                    let answer = connection.answer().expect("the connection stays");
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    let version = two.check(&answer.json(), &exact);
                    seen[usize::from(version == "intent-v2")] += 1;
                    let mut last = last.lock().unwrap();
                    changes += usize::from(!last.is_empty() && *last != version);
                    *last = version;
                }
                (seen, changes)
            })
        })
        .collect();
    let all_get = |version: &str| {
        until("every client is answered with it", || {
            lasts.iter().all(|last| *last.lock().unwrap() == version).then_some(())
        });
    };
    all_get("intent-v1");
    let swaps = 10;
    let mut generation = 1;
    let mut most = 0;
    for swap in 0..swaps {
        let (from, to) = if swap % 2 == 0 { (&one, &other) } else { (&other, &one) };
        program.assign(&assignment(generation + 1, &from.name, &[from, to]));
        until("both are held", || {
            let stats = program.stats();
            assert_eq!(
                stats.serving.as_deref(),
                Some(from.name.as_str()),
                "nothing changes over yet"
            );
            (stats.generation == generation + 1 && state(&stats, &to.name) == Some(LoadState::Ready)).then_some(())
        });
        generation += 2;
        program.assign(&assignment(generation, &to.name, &[to]));
        answers_with(&program, &to.name);
        all_get(&to.name);
        most = most.max(program.rss());
    }
    let rss = program.rss();
    over.store(true, Ordering::Relaxed);
    for client in clients {
        let (seen, changes) = client.join().unwrap();
        assert!(seen.iter().all(|n| *n > 0), "{seen:?}");
        // On one connection the version changes over once per swap, and never flickers.
        assert_eq!(changes, swaps, "{seen:?}");
    }
    println!(
        "{swaps} swaps, resident {} MiB at most, {} MiB at the end",
        most >> 20,
        rss >> 20
    );
}

#[test]
fn a_version_that_cannot_be_loaded_changes_nothing_but_what_is_said() {
    let two = Two::new();
    let (one, mut bad) = two.versions();
    let mut program = Program::ready(&two.setup());
    two.two.damage(WEIGHTS_FILE, |bytes| *bytes.last_mut().unwrap() ^= 1);
    program.assign(&assignment(2, "intent-v1", &[&one, &bad]));
    let failure = until("it has failed", || {
        let stats = program.stats();
        assert!(stats.ready && stats.serving.as_deref() == Some("intent-v1"));
        stats.versions.into_iter().find(|v| v.name == "intent-v2")?.failure
    });
    assert_eq!(failure.reason, FailureReason::DigestMismatch);
    // Even when it is to answer: what cannot be loaded does not take the place of what answers.
    program.assign(&assignment(3, "intent-v2", &[&bad]));
    until("the assignment is followed", || {
        (program.stats().generation == 3).then_some(())
    });
    assert_eq!(
        two.check(&predict(program.data, &json!({ "text": TEXT })).json(), &two.exact()),
        "intent-v1"
    );
    // The artifact is mended, and the version made anew.
    two.two.damage(WEIGHTS_FILE, |bytes| *bytes.last_mut().unwrap() ^= 1);
    bad.artifact.uri = two.two.uri().as_str().into();
    program.assign(&assignment(4, "intent-v1", &[&one]));
    until("the assignment is followed", || {
        (program.stats().generation == 4).then_some(())
    });
    program.assign(&assignment(5, "intent-v2", &[&bad]));
    answers_with(&program, "intent-v2");
    assert_eq!(
        two.check(&predict(program.data, &json!({ "text": TEXT })).json(), &two.exact()),
        "intent-v2"
    );
    program.signal();
    assert_eq!(program.ended().code(), Some(0), "{}", program.log());
}

#[test]
fn a_version_made_anew_under_its_name_changes_over_as_well() {
    let two = Two::new();
    let program = Program::ready(&two.setup());
    let anew = two.two.version("intent-v1", &two.two.uri());
    let exact = two.exact();
    program.assign(&assignment(2, "intent-v1", &[&anew]));
    until("it answers", || {
        let answer = predict(program.data, &json!({ "text": TEXT }));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let got = answer.json()["all_probs"][LABELS[0]].as_f64().unwrap();
        ((got - f64::from(exact[1][0])).abs() < 1e-5).then_some(())
    });
    assert_eq!(program.stats().versions[0].digest, anew.artifact.digest);
}

#[test]
fn a_storage_that_does_not_answer_is_no_reason_to_stop_answering() {
    let two = Two::new();
    let storage = Storage::new(two.two.dir.path(), Behaviour::Silent);
    let (one, _) = two.versions();
    let far = two.two.version("intent-v2", &storage.uri());
    let program = Program::ready(&two.setup());
    program.assign(&assignment(2, "intent-v1", &[&one, &far]));
    until("it is fetched", || {
        (state(&program.stats(), "intent-v2") == Some(LoadState::Downloading)).then_some(())
    });
    // A way back in the middle ends the fetching.
    program.assign(&assignment(3, "intent-v1", &[&one]));
    until("it is not wanted any more", || {
        state(&program.stats(), "intent-v2").is_none().then_some(())
    });
    let answer = predict(program.data, &json!({ "text": TEXT }));
    assert_eq!(answer.status, 200);
    program.assign(&assignment(4, "intent-v1", &[&one, &far]));
    let failure = until("all tries have failed", || {
        program.stats().versions.into_iter().find_map(|v| v.failure)
    });
    assert_eq!(failure.reason, FailureReason::StorageUnavailable);
    assert!(program.stats().ready);
}

#[test]
fn a_version_that_ended_the_process_while_it_was_loaded_is_not_loaded_again() {
    let two = Two::new();
    let (one, other) = two.versions();
    let scratch = tempfile::tempdir().unwrap();
    // As a process leaves it that was killed at that moment.
    fs::write(scratch.path().join("loading"), other.artifact.digest.hex()).unwrap();
    let setup = Setup {
        assignment: assignment(2, "intent-v1", &[&one, &other]),
        ..two.setup()
    };
    let mut program = Program::serve_from(&setup, Some(scratch.path()));
    program.wait_ready();
    let failure = until("it says so", || {
        program.stats().versions.into_iter().find_map(|v| v.failure)
    });
    assert_eq!(failure.reason, FailureReason::LoadCrashed);
    // Wanted anew after it was let go, it gets another chance.
    program.assign(&assignment(3, "intent-v1", &[&one]));
    until("the assignment is followed", || {
        (program.stats().generation == 3).then_some(())
    });
    program.assign(&assignment(4, "intent-v2", &[&other]));
    answers_with(&program, "intent-v2");
    until("nothing is marked any more", || {
        (!scratch.path().join("loading").exists()).then_some(())
    });
}

#[test]
fn a_process_killed_while_it_builds_a_version_leaves_its_mark() {
    let mut two = Two::new();
    // Answering so many texts takes a while, so that there is time to kill it.
    two.two.add_sample(&[TEXT; 3000], 0);
    let (one, slow) = two.versions();
    let scratch = tempfile::tempdir().unwrap();
    let mark = scratch.path().join("loading");
    let mut program = Program::serve_from(&two.setup(), Some(scratch.path()));
    program.wait_ready();
    assert!(!mark.exists(), "the first version is not loaded beside another one");
    program.assign(&assignment(2, "intent-v1", &[&one, &slow]));
    // The file is there before its content is.
    let marked = || fs::read_to_string(&mark).unwrap_or_default();
    until("it is built", || (!marked().is_empty()).then_some(()));
    drop(program);
    assert_eq!(marked(), slow.artifact.digest.hex());
}

/// Asks without end, from several clients at once, until the process is gone.
fn load(program: &Program) -> Vec<thread::JoinHandle<()>> {
    let (address, texts) = (program.data, vec![TEXT; 64]);
    let request = post("/predict", json!({ "texts": texts }).to_string().as_bytes());
    let client = || {
        let request = request.clone();
        thread::spawn(move || {
            while let Some(mut connection) = Connection::try_open(address) {
                connection.send(&request);
                while connection.answer().is_some() {
                    connection.send(&request);
                }
            }
        })
    };
    (0..4).map(|_| client()).collect()
}

/// Ends the process by SIGABRT at a moment at which it computes with the version, or with none that is marked.
fn abort(mut program: Program, scratch: &Path, computing: Option<&ServedVersion>) {
    let clients = load(&program);
    let marked = || {
        let entries = fs::read_dir(scratch.join("computing")).unwrap();
        let marks = entries.map(|entry| fs::read(entry.unwrap().path()).unwrap());
        marks.flatten().any(|byte| byte != 0)
    };
    until("it computes", || {
        if computing.is_none() {
            // Something is computed, and nothing marked.
            let load = program.stats().load?;
            return (!marked() && load.busy_seconds > 0.2).then_some(());
        }
        program.stop();
        let there = marked();
        if !there {
            program.send(Signal::CONT);
        }
        there.then_some(())
    });
    if let Some(version) = computing {
        assert!(scratch.join("computing").join(version.artifact.digest.hex()).exists());
    }
    program.send(Signal::ABORT);
    program.send(Signal::CONT);
    assert_eq!(program.ended().code(), None, "{}", program.log());
    for client in clients {
        client.join().unwrap();
    }
}

fn crash(stats: &Stats, version: &str) -> Option<Crash> {
    stats.versions.iter().find(|v| v.name == version)?.crash.clone()
}

#[test]
fn a_version_that_ends_the_process_is_held_back_and_the_stable_one_answers() {
    let two = Two::new();
    let (one, other) = two.versions();
    let exact = two.exact();
    let scratch = tempfile::tempdir().unwrap();
    let divided = |generation: u64, cleared: &[&Crash]| Assignment {
        split: Some(Split::divide("salt", None, &[("intent-v1", 50), ("intent-v2", 50)])),
        cleared: cleared
            .iter()
            .map(|crash| Cleared {
                digest: other.artifact.digest.clone(),
                crash: crash.id.clone(),
            })
            .collect(),
        ..assignment(generation, "intent-v1", &[&one, &other])
    };
    let start = |assignment: Assignment| {
        let setup = Setup {
            assignment,
            ..two.setup()
        };
        let mut program = Program::serve_from(&setup, Some(scratch.path()));
        program.wait_ready();
        program
    };
    let twenty = |program: &Program| -> Vec<String> { (0..20).map(|_| asked(program, &two, &exact, None)).collect() };

    abort(start(divided(1, &[])), scratch.path(), Some(&other));
    let program = start(divided(1, &[]));
    let stats = program.stats();
    let (failure, first) = (stats.versions[1].failure.clone(), crash(&stats, "intent-v2").unwrap());
    assert_eq!(failure.unwrap().reason, FailureReason::ExecutionCrashed);
    assert_eq!((first.times, first.together, first.last), (1, false, true));
    assert_eq!(state(&stats, "intent-v1"), Some(LoadState::Ready));
    assert!(twenty(&program).iter().all(|version| version == "intent-v1"));

    // The operator clears it: tried again, and held back when it does the same again.
    program.assign(&divided(2, &[&first]));
    until("it is tried again", || {
        twenty(&program).contains(&"intent-v2".to_owned()).then_some(())
    });
    assert_eq!(crash(&program.stats(), "intent-v2"), None);
    abort(program, scratch.path(), Some(&other));
    let program = start(divided(2, &[&first]));
    let again = crash(&program.stats(), "intent-v2").unwrap();
    assert_eq!(again.times, 2);
    assert_ne!(again.id, first.id);
    assert!(twenty(&program).iter().all(|version| version == "intent-v1"));

    // Wanted anew after it was let go, it gets another chance.
    program.assign(&assignment(3, "intent-v1", &[&one]));
    answers_with(&program, "intent-v1");
    program.assign(&divided(4, &[]));
    until("it is tried again", || {
        (state(&program.stats(), "intent-v2") == Some(LoadState::Ready)).then_some(())
    });
}

#[test]
fn a_canary_answers_in_its_pods_and_nowhere_else() {
    let two = Two::new();
    let (one, other) = two.versions();
    let exact = two.exact();
    let scratch = tempfile::tempdir().unwrap();
    let canary = |generation, share| two.by_steps(generation, share);
    let start = |pod: &str, scratch: Option<&Path>| {
        let setup = Setup {
            assignment: canary(1, 2500),
            ..two.setup()
        };
        let mut program = Program::serve_as(pod, &setup, scratch);
        program.wait_ready();
        program
    };
    let holds = |program: &Program, expected: LoadState| {
        until("the canary is there", || {
            (state(&program.stats(), "intent-v2") == Some(expected)).then_some(())
        });
    };
    let share = |program: &Program, key: Option<&str>| {
        let versions = (0..200).map(|_| asked(program, &two, &exact, key));
        versions.filter(|version| version == "intent-v2").count()
    };
    let (mine, another) = (start("mine", Some(scratch.path())), start("another", None));
    holds(&mine, LoadState::Ready);
    assert_eq!(mine.stats().serving.as_deref(), Some("intent-v1"));
    assert!((48..=52).contains(&share(&mine, None)), "evenly");
    assert!((48..=52).contains(&share(&mine, Some("user-1"))), "whatever the key");
    assert_eq!((share(&another, None), another.stats().versions.len()), (0, 1));

    // Other shares act at once.
    mine.assign(&canary(2, 10_000));
    until("all are answered with it", || (share(&mine, None) == 200).then_some(()));
    // It ends the process: the pod answers on, with the stable version.
    abort(mine, scratch.path(), Some(&other));
    let mine = start("mine", Some(scratch.path()));
    holds(&mine, LoadState::Failed);
    assert!(crash(&mine.stats(), "intent-v2").is_some());
    assert_eq!(share(&mine, None), 0);
    mine.assign(&assignment(3, "intent-v1", &[&one]));
    answers_with(&mine, "intent-v1");
    // The pod of another name reads the same file.
    another.assign(&canary(3, 1));
    until("the assignment is followed", || {
        (another.stats().generation == 3).then_some(())
    });
    assert_eq!(another.stats().versions.len(), 1);
}

/// What comes by steps is asked what the version before was measured with; labels are the same where their names are.
#[test]
fn a_canary_is_compared_with_the_version_that_answers() {
    let mut two = Two::new();
    let texts: Vec<String> = (0..40).map(|n| format!("{TEXT} {}", "please ".repeat(n))).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    two.one.add_sample(&texts, 0);
    let mut other_names = LABELS;
    other_names.rotate_left(1);
    two.two.name_labels(&other_names);
    let names = |artifact: &Artifact, labels: [&'static str; 4]| -> Vec<&str> {
        let answers = artifact.direct(&texts);
        let best = answers.iter().map(|answer| most_probable(answer).unwrap().0);
        best.map(|class| labels[class]).collect()
    };
    let (before, now) = (names(&two.one, LABELS), names(&two.two, other_names));
    let same = before.iter().zip(&now).filter(|(before, now)| before == now).count();
    let (one, other) = two.versions();
    let canary = two.by_steps(1, 100);
    let copied = Assignment {
        mirror: Some(Mirror {
            version: "intent-v2".to_owned(),
            percent: 1,
        }),
        ..assignment(1, "intent-v1", &[&one, &other])
    };
    let beside = assignment(1, "intent-v1", &[&one, &other]);
    for (case, assignment, compared) in [
        ("by steps", canary.clone(), true),
        ("copies", copied, true),
        ("at once", beside, false),
    ] {
        let setup = Setup {
            assignment,
            ..two.setup()
        };
        let mut program = Program::serve_as("mine", &setup, None);
        program.wait_ready();
        let told = until("both are held", || {
            let stats = program.stats();
            (state(&stats, "intent-v2") == Some(LoadState::Ready)).then_some(stats.versions)
        });
        assert_eq!(told[0].likeness, None, "{case}: with itself");
        let expected = compared.then(|| Likeness {
            to: one.artifact.digest.clone(),
            agreement: Agreement {
                texts: 40,
                same: same as u32,
            },
        });
        assert_eq!(told[1].likeness, expected, "{case}");
        // In another order they are the same labels.
        let labels = (case == "by steps").then(|| LabelsBeside::of(&[], &one.artifact.digest, &[]));
        let labels = labels.map(|labels| LabelsBeside { theirs: 4, ..labels });
        assert_eq!((&told[0].labels, &told[1].labels), (&None, &labels), "{case}");
    }

    // A version without a sample, or with one that cannot be read, has nothing to compare with, and that holds nobody back.
    two.one.damage(EVALUATION_SAMPLE_FILE, |bytes| bytes.truncate(9));
    two.one
        .describe(|manifest| manifest.files.retain(|file| file.name != EVALUATION_SAMPLE_FILE));
    let (one, _) = two.versions();
    let setup = Setup {
        assignment: Assignment {
            versions: vec![one],
            ..canary
        },
        ..two.setup()
    };
    let mut program = Program::serve_as("mine", &setup, None);
    program.wait_ready();
    until("both are held", || {
        let stats = program.stats();
        let loaded = state(&stats, "intent-v2") == Some(LoadState::Ready);
        loaded.then(|| assert_eq!(stats.versions[1].likeness, None))
    });
}

#[test]
fn a_canary_that_lacks_a_label_meets_no_client() {
    let mut two = Two::new();
    let mut fewer = LABELS;
    fewer[2] = "greeting";
    two.two.name_labels(&fewer);
    let (one, other) = two.versions();
    let setup = Setup {
        assignment: two.by_steps(1, 10_000),
        ..two.setup()
    };
    let mut program = Program::serve_as("mine", &setup, None);
    program.wait_ready();
    let version = || {
        let answer = predict(program.data, &json!({"text": TEXT}));
        answer.json()["model_version"].as_str().unwrap().to_owned()
    };
    // Whoever asks while it comes, or after that.
    let told = until("both are held", || {
        assert_eq!(version(), "intent-v1");
        let stats = program.stats();
        (state(&stats, "intent-v2") == Some(LoadState::Ready)).then_some(stats.versions)
    });
    let lacks = LabelsBeside {
        to: one.artifact.digest.clone(),
        theirs: 4,
        missing: 1,
        first: vec!["refund".to_owned()],
    };
    assert_eq!(told[1].labels, Some(lacks));
    for _ in 0..20 {
        assert_eq!(version(), "intent-v1");
    }
    // All pods are to change over to it: somebody has approved it.
    program.assign(&assignment(2, "intent-v2", &[&other]));
    until("it answers", || (version() == "intent-v2").then_some(()));
}

#[test]
fn an_end_in_order_or_with_the_stable_version_holds_nothing_back() {
    let two = Two::new();
    let (one, other) = two.versions();
    let scratch = tempfile::tempdir().unwrap();
    let start = |split: Option<Split>| {
        let setup = Setup {
            assignment: Assignment {
                split,
                ..assignment(1, "intent-v1", &[&one, &other])
            },
            ..two.setup()
        };
        let mut program = Program::serve_from(&setup, Some(scratch.path()));
        program.wait_ready();
        until("both are held", || {
            let stats = program.stats();
            assert_eq!(crash(&stats, "intent-v2"), None);
            (state(&stats, "intent-v2") == Some(LoadState::Ready)).then_some(())
        });
        program
    };
    abort(start(None), scratch.path(), None);
    let all = Split::divide("salt", None, &[("intent-v1", 0), ("intent-v2", 100)]);
    let mut program = start(Some(all.clone()));
    let clients = load(&program);
    until("it computes", || {
        let load = program.stats().load?;
        (load.busy_seconds > 0.1).then_some(())
    });
    program.signal();
    assert_eq!(program.ended().code(), Some(0), "{}", program.log());
    for client in clients {
        client.join().unwrap();
    }
    drop(start(Some(all)));
}

#[test]
fn what_cannot_be_followed_is_passed_over() {
    let two = Two::new();
    let (one, other) = two.versions();
    let program = Program::ready(&two.setup());
    program.assign(&assignment(5, "intent-v2", &[&other]));
    answers_with(&program, "intent-v2");
    // Older than what is followed; one that contradicts itself; one of another release; none at all.
    program.assign(&assignment(4, "intent-v1", &[&one]));
    program.assign(&assignment(6, "intent-v9", &[&one]));
    until("it is refused", || {
        program.log().contains("intent-v9 is to answer").then_some(())
    });
    let mut foreign = assignment(7, "intent-v1", &[&one]);
    foreign.schema_version = 9;
    program.assign(&foreign);
    until("it is refused", || {
        program.log().contains("schemaVersion is 9").then_some(())
    });
    fs::remove_file(program.home.path().join("assignment.json")).unwrap();
    until("it is missed", || {
        program.log().contains("cannot be read").then_some(())
    });
    let stats = program.stats();
    assert_eq!((stats.generation, stats.serving.as_deref()), (5, Some("intent-v2")));
    program.assign(&assignment(8, "intent-v1", &[&one]));
    answers_with(&program, "intent-v1");
}

#[test]
fn the_cache_keeps_what_is_held_and_what_was_used_last() {
    let artifacts: Vec<Artifact> = (1..=5).map(Artifact::of_seed).collect();
    let versions: Vec<ServedVersion> = artifacts
        .iter()
        .enumerate()
        .map(|(i, artifact)| artifact.version(&format!("v{i}"), &artifact.uri()))
        .collect();
    let setup = Setup {
        assignment: assignment(1, "v0", &[&versions[0]]),
        ..artifacts[0].setup("")
    };
    let program = Program::ready(&setup);
    let cached = |program: &Program| {
        let entries = fs::read_dir(program.home.path().join("scratch/artifacts")).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    for (i, version) in versions.iter().enumerate().skip(1) {
        program.assign(&assignment(i as u64 + 1, &version.name, &[version]));
        answers_with(&program, &version.name);
        // Folders are told apart by when they were used.
        thread::sleep(Duration::from_millis(20));
    }
    let mut last: Vec<String> = versions[2..]
        .iter()
        .map(|v| v.artifact.digest.hex().to_owned())
        .collect();
    last.sort();
    until("the oldest are gone", || (cached(&program) == last).then_some(()));
}

/// Asks with a key, or without; the version that answered.
fn asked(program: &Program, two: &Two, exact: &[Vec<f32>; 2], key: Option<&str>) -> String {
    let key = key.map_or_else(String::new, |key| format!("X-Experiment-Key: {key}\r\n"));
    let headers = format!("Content-Type: application/json\r\n{key}");
    let body = json!({ "text": TEXT }).to_string();
    let mut connection = Connection::open(program.data);
    connection.send(&with_headers("/predict", &headers, body.as_bytes()));
    let answer = connection.answer().unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    two.check(&answer.json(), exact)
}

#[test]
fn an_experiment_divides_requests_and_keys_keep_their_version() {
    let two = Two::new();
    let (one, other) = two.versions();
    let exact = two.exact();
    let divided = |generation: u64, before: Option<&Split>, percent: u8| Assignment {
        split: Some(Split::divide(
            "salt",
            before,
            &[("intent-v1", 100 - percent), ("intent-v2", percent)],
        )),
        ..assignment(generation, "intent-v1", &[&one, &other])
    };
    // Two pods, one of them new in the middle of the experiment.
    let first = divided(1, None, 30);
    let setup = Setup {
        assignment: first.clone(),
        ..two.setup()
    };
    let pods = [Program::ready(&setup), Program::ready(&setup)];
    let keys: Vec<String> = (0..200).map(|n| format!("user-{n}")).collect();
    let all = |pod: &Program| -> Vec<String> { keys.iter().map(|key| asked(pod, &two, &exact, Some(key))).collect() };
    let before = all(&pods[0]);
    assert_eq!(before, all(&pods[1]), "the same in every pod");
    assert_eq!(before, all(&pods[0]), "and every time");
    let share = |versions: &[String]| versions.iter().filter(|v| *v == "intent-v2").count();
    assert!(
        (35..=85).contains(&share(&before)),
        "30 of 100, within four deviations: {}",
        share(&before)
    );
    let without: Vec<String> = (0..200).map(|_| asked(&pods[0], &two, &exact, None)).collect();
    assert!((58..=62).contains(&share(&without)), "evenly: {}", share(&without));

    // More of them: who had the variant keeps it.
    pods[0].assign(&divided(2, first.split.as_ref(), 60));
    until("the assignment is followed", || {
        (pods[0].stats().generation == 2).then_some(())
    });
    let after = all(&pods[0]);
    assert!(
        before
            .iter()
            .zip(&after)
            .all(|(before, after)| before == "intent-v1" || after == "intent-v2")
    );
    assert!(share(&after) > share(&before));

    // Its end.
    pods[0].assign(&assignment(3, "intent-v1", &[&one]));
    answers_with(&pods[0], "intent-v1");
    assert_eq!(share(&all(&pods[0])), 0);
    // A client that names a version gets it, where it answers.
    let infer = |version: &str| {
        let body = json!({"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [TEXT]}]});
        let path = format!("/v2/models/intent/versions/{version}/infer");
        let mut connection = Connection::open(pods[1].data);
        connection.send(&post(&path, body.to_string().as_bytes()));
        connection.answer().unwrap()
    };
    for version in ["intent-v1", "intent-v2"] {
        let answer = infer(version);
        assert_eq!((answer.status, &answer.json()["model_version"]), (200, &json!(version)));
    }
    assert_eq!(infer("intent-v9").status, 404);
}

#[test]
fn a_variant_that_cannot_be_loaded_leaves_its_requests_to_the_stable_version() {
    let two = Two::new();
    let (one, bad) = two.versions();
    two.two.damage(WEIGHTS_FILE, |bytes| *bytes.last_mut().unwrap() ^= 1);
    let setup = Setup {
        assignment: Assignment {
            split: Some(Split::divide("salt", None, &[("intent-v1", 50), ("intent-v2", 50)])),
            ..assignment(1, "intent-v1", &[&one, &bad])
        },
        ..two.setup()
    };
    let program = Program::ready(&setup);
    let exact = two.exact();
    let versions: Vec<String> = (0..20).map(|_| asked(&program, &two, &exact, None)).collect();
    assert!(versions.iter().all(|version| version == "intent-v1"), "{versions:?}");
    let failure = program.stats().versions.into_iter().find_map(|v| v.failure).unwrap();
    assert_eq!(failure.reason, FailureReason::DigestMismatch);
}

#[test]
fn a_mirror_gets_copies_and_no_client_hears_of_it() {
    let two = Two::new();
    let (one, other) = two.versions();
    let exact = two.exact();
    let setup = Setup {
        assignment: Assignment {
            mirror: Some(Mirror {
                version: "intent-v2".to_owned(),
                percent: 50,
            }),
            ..assignment(1, "intent-v1", &[&one, &other])
        },
        ..two.setup()
    };
    let program = Program::ready(&setup);
    until("the mirror is loaded", || {
        (state(&program.stats(), "intent-v2") == Some(LoadState::Ready)).then_some(())
    });
    for _ in 0..100 {
        assert_eq!(asked(&program, &two, &exact, None), "intent-v1");
    }
    let count = |outcome: &str| -> usize {
        let text = get(program.inside, "/metrics").text();
        let line = format!("flywheel_mirror_texts_total{{version=\"intent-v2\",outcome=\"{outcome}\"}} ");
        let value = text.lines().find_map(|l| l.strip_prefix(&line));
        value.map_or(0, |value| value.parse().unwrap())
    };
    let compared = until("the copies are compared", || {
        let compared = count("same") + count("different");
        (compared + count("shed") >= 49).then_some(compared)
    });
    assert!(compared > 0 && compared <= 51, "{compared} of 100 at 50 percent");
    // Both tiny models answer one text: with the same label every time, or never.
    assert!(count("same") == 0 || count("different") == 0);
    assert_eq!(count("failed"), 0);
    // The same in what the operator reads; a copy may still be under way.
    let copies = until("it says what came of the copies", || {
        let copies = program.stats().versions.into_iter().find_map(|v| v.copies)?;
        let told = [copies.texts, copies.same, copies.shed].map(|n| n as usize);
        (told == [count("same") + count("different"), count("same"), count("shed")]).then_some(copies)
    });
    assert!(copies.requests == copies.texts && copies.failed == 0, "{copies:?}");
    assert!(copies.seconds > 0.0 && copies.answered_seconds > 0.0, "{copies:?}");
    // Copies count for the version that computed them.
    let texts = |version: &str| counted(program.inside, version).unwrap().texts;
    assert_eq!(texts("intent-v1"), 100);
    until("as many copies are counted as were compared", || {
        (texts("intent-v2") == (count("same") + count("different")) as u64).then_some(())
    });
}

#[test]
fn each_version_counts_what_it_answered_in_its_own_bins_and_keeps_it_for_a_while() {
    let texts: Vec<String> = [
        "card",
        "my card",
        "where is my money",
        "send",
        "send a card back",
        "refund!",
        "q",
        "z?",
    ]
    .iter()
    .flat_map(|text| ["", "please ", "is it so, ", "where "].map(|before| format!("{before}{text}")))
    .collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut two = Two::new();
    // The second is of an earlier release, or from elsewhere: it has no profile.
    let own = two.one.add_profile(&texts);
    assert_eq!((own.texts, own.projections.len()), (texts.len() as u64, PROJECTIONS));
    let (one, other) = two.versions();
    let split = Some(Split::divide("salt", None, &[("intent-v1", 50), ("intent-v2", 50)]));
    let setup = Setup {
        assignment: Assignment {
            split,
            ..assignment(1, "intent-v1", &[&one, &other])
        },
        ..two.setup()
    };
    let program = Program::ready(&setup);
    assert_eq!(
        counted(program.inside, "intent-v1"),
        None,
        "what was computed to warm up is no traffic"
    );
    let direct = [two.one.counted(&texts), two.two.counted(&texts)];
    let mut want = [own.emptied(), DataProfile::new(LABELS.len())];
    let ask = |want: &mut [DataProfile; 2], program: &Program| {
        for (place, text) in texts.iter().enumerate() {
            let answer = predict(program.data, &json!({ "text": text })).json();
            let version = usize::from(answer["model_version"] == "intent-v2");
            let (ids, answer) = &direct[version][place];
            want[version].add(ids, answer);
        }
    };
    ask(&mut want, &program);
    let told = |program: &Program| ["intent-v1", "intent-v2"].map(|name| counted(program.inside, name).unwrap());
    assert_eq!(told(&program), want);
    assert!(want.iter().all(|profile| profile.texts >= 10), "each answered some");

    // It is held no more, and comes back.
    program.assign(&assignment(2, "intent-v2", &[&other]));
    answers_with(&program, "intent-v2");
    ask(&mut want, &program);
    assert_eq!(told(&program), want);
    program.assign(&assignment(3, "intent-v1", &[&one]));
    answers_with(&program, "intent-v1");
    ask(&mut want, &program);
    assert_eq!(told(&program), want);
    drop(program);

    // One that cannot be used is said before the pod is ready.
    two.one.damage(DATA_PROFILE_FILE, |bytes| bytes.truncate(100));
    two.one.describe(|_| ());
    let (bad, _) = two.versions();
    let setup = Setup {
        assignment: assignment(1, "intent-v1", &[&bad]),
        ..two.setup()
    };
    assert_fails(
        "broken profile",
        &mut Program::serve(&setup),
        FailureReason::ManifestInvalid,
        DATA_PROFILE_FILE,
    );
}
