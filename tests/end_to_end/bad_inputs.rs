//! Inputs that must be refused, or borne: each ends in a clear condition, without a storm and with nothing lost. The rows
//! run side by side, since most of their time is waiting, and begin one after the other, since beginning is not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bench::{Bench, GOOD_VERSION, NAMESPACE, ROW_LIMIT, Row, SOON, endpoint, ends, service, training, version};
use crate::cluster::{
    ManyGpus, apply, condition, delete_namespace, get, kubectl, list, localcluster, need, object_store, predict, run,
};
use crate::deletion;
use crate::storage::{Fault, Proxy, bucket, digests};

/// A row that needs more than one object, or that something is done to on its way.
type Scenario = fn(&Bench);

const SCENARIOS: &[(&str, Scenario)] = &[
    ("wrong digest", wrong_digest),
    ("changed before it was verified", changed_before),
    ("changed after it was verified", changed_after),
    ("long names", long_names),
    ("names taken", names_taken),
    ("foreign data", foreign_data),
    ("storage comes back", storage_comes_back),
    ("an image that one node has", image_on_one_node),
    ("silent storage of a service", silent_storage_of_a_service),
    ("deleted while downloading", deletion::training_while_downloading),
    ("deleted while training", deletion::training_while_it_trains),
    ("deleted while uploading", deletion::training_while_uploading),
    ("deleted while verifying", deletion::version_while_verifying),
    ("deleted while serving", deletion::service_while_starting_and_serving),
];

#[test]
fn bad_inputs_end_in_a_clear_condition_without_a_storm() {
    let begun = Instant::now();
    bucket(&["make", &format!("{}/example", need("FLYWHEEL_CACHE"))]);
    object_store();
    let _gpus = ManyGpus::simulate();
    let bench = &Bench::start();
    let stores = Stores::start();
    let rows = table(&stores);

    let mut failures: Vec<String> = std::thread::scope(|scope| {
        type Work<'a> = Box<dyn FnOnce() + Send + 'a>;
        let scenarios = SCENARIOS.iter().map(|(name, scenario)| {
            let work: Work = Box::new(|| scenario(bench));
            ((*name).to_owned(), work)
        });
        let mut begins = rows.iter().map(|(object, row)| {
            let work: Work = Box::new(|| settle(bench, object, row));
            (row.name.clone(), work)
        });
        // Scenarios use the version of the first row.
        let first = begins.next();
        let running: Vec<_> = first
            .into_iter()
            .chain(scenarios)
            .chain(begins)
            .map(|(name, work)| {
                bench.room();
                let named = std::thread::Builder::new().name(name.clone());
                (name, named.spawn_scoped(scope, work).expect("a thread"))
            })
            .collect();
        println!("  {:6.1} s  every row has begun", begun.elapsed().as_secs_f64());
        running
            .into_iter()
            .filter_map(|(name, thread)| thread.join().err().map(|_| name))
            .collect()
    });
    println!("  {:6.1} s  every row has ended", begun.elapsed().as_secs_f64());
    bench.print();
    let noise = noise_of_the_operator(begun, &mut failures);
    println!("  lines of the operator's log above INFO, by object: {noise:?}");
    // Also after a failure, or the pods that are left hold the GPUs of the tests that follow.
    delete_namespace(NAMESPACE);
    println!("  {:6.1} s  nothing is left", begun.elapsed().as_secs_f64());
    assert_eq!(failures, Vec::<String>::new(), "their messages stand above");
    assert!(noise.values().all(|lines| *lines <= NOISE), "{noise:?}");
}

/// Writes by which an attempt is given up and the next one made: the Job's verdict, the pod's end, the next Job, and the status
/// and an event of each.
const RETRY_WRITES: usize = 8;

/// Lines above INFO that the operator may write of one object, over all that happens to it here.
const NOISE: usize = 3;

/// Lines of the operator's pods above INFO, by object of the rows; a restarted operator is a failure.
fn noise_of_the_operator(since: Instant, failures: &mut Vec<String>) -> BTreeMap<String, usize> {
    let since = format!("--since={}s", since.elapsed().as_secs());
    let of_a_row = format!(" {NAMESPACE}/");
    let (mut noise, mut lines) = (BTreeMap::new(), 0);
    for pod in list("pods", "flywheel-system", "app.kubernetes.io/component=operator") {
        for status in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
            if status["restartCount"] != 0 {
                failures.push(format!("the operator restarted: {status}"));
            }
        }
        let name = pod["metadata"]["name"].as_str().expect("name");
        let log = kubectl(&["logs", "-n", "flywheel-system", name, &since]).expect("kubectl logs");
        for line in log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            let object = line["span"]["object"].as_str().unwrap_or_default();
            if object.contains(&of_a_row) {
                lines += 1;
                if line["level"] != "INFO" {
                    *noise.entry(object.to_owned()).or_default() += 1;
                }
            }
        }
    }
    assert!(lines > 0, "no line of the operator's log tells of any row");
    noise
}

/// The object store in the conditions that rows of the table meet it in.
struct Stores {
    silent: Proxy,
    refusing: Proxy,
    leaving: Proxy,
    slow: Proxy,
    late: Proxy,
}

impl Stores {
    fn start() -> Self {
        let refusing = Proxy::start(Fault::None);
        refusing.leave();
        Self {
            silent: Proxy::start(Fault::Silent),
            refusing,
            leaving: Proxy::start(Fault::Leaves {
                part: WEIGHTS,
                after: 100_000,
            }),
            // Half a megabyte in two minutes: never silent for long, and never done in time.
            slow: Proxy::start(Fault::Drip {
                part: "GET /bad-inputs/tiny/tokenizer.json",
                bytes: 1024,
                pause: Duration::from_millis(250),
            }),
            late: Proxy::start(Fault::Late(Duration::from_millis(500))),
        }
    }
}

/// The request for the pretrained weights.
const WEIGHTS: &str = "GET /bad-inputs/tiny/model.safetensors";

fn source(job: &mut Value, key: &str) {
    job["dataset"]["sources"][0]["uri"] = json!(format!("s3://bad-inputs/{key}"));
}

fn pretrained(job: &mut Value, key: &str) {
    job["model"]["pretrained"]["uri"] = json!(format!("s3://bad-inputs/{key}"));
}

fn class(class: &str) -> Value {
    json!({"class": class})
}

/// A job that fails for good.
fn fails(name: &str, reason: &'static str, change: impl FnOnce(&mut Value)) -> (Value, Row) {
    let job = training(name, change);
    let row = ends(&job, "Failed", reason);
    (job, row)
}

/// A service that does not become Ready.
fn unready(name: &str, reason: &'static str, change: impl FnOnce(&mut Value)) -> (Value, Row) {
    let service = service(name, change);
    let row = ends(&service, "Ready", reason);
    (service, row)
}

/// Trusts certificates of a ConfigMap that is not there.
fn missing_ca(spec: &mut Value) {
    spec["storage"]["caBundle"] = json!({"configMapRef": {"name": "nowhere", "key": "ca.crt"}});
}

/// A digest that nothing has.
fn zeros() -> String {
    format!("sha256:{}", "0".repeat(64))
}

/// Rows of one object that is applied and left alone, in the order in which they begin: what takes longest first.
fn table(stores: &Stores) -> Vec<(Value, Row)> {
    let nowhere = json!({"uri": "s3://bad-inputs/nowhere", "digest": zeros()});
    let with = |(object, row): (Value, Row), change: fn(Row) -> Row| (object, change(row));
    let of = |object: Value, condition, reason| {
        let row = ends(&object, condition, reason);
        (object, row)
    };
    vec![
        // The training that goes well; others use its version.
        of(
            training("good", |j| {
                j["output"] = json!({"model": "good", "versionName": GOOD_VERSION, "uri": "s3://bad-inputs/good", "reuse": "Never"});
            }),
            "Complete",
            "Trained",
        ),
        // The storage.
        fails("wrong-credentials", "StorageForbidden", |j| {
            j["storage"]["secretRef"]["name"] = json!("wrong");
        }),
        with(
            fails("storage-refuses", "MaxRestartsExceeded", |j| {
                endpoint(j, &stores.refusing.url());
                j["recovery"]["maxRestarts"] = json!(1);
            }),
            |row| row.says("StorageUnavailable").attempts(2),
        ),
        with(
            fails("storage-is-silent", "MaxRestartsExceeded", |j| {
                endpoint(j, &stores.silent.url());
            }),
            |row| row.says("StorageUnavailable"),
        ),
        with(
            fails("storage-disappears", "MaxRestartsExceeded", |j| {
                endpoint(j, &stores.leaving.url());
            }),
            |row| row.says("tiny/model.safetensors: the storage did not answer well"),
        ),
        with(
            fails("storage-is-too-slow", "MaxRestartsExceeded", |j| {
                endpoint(j, &stores.slow.url());
            }),
            |row| row.says("tiny/tokenizer.json: the storage did not answer well"),
        ),
        of(
            training("storage-is-slow", |j| endpoint(j, &stores.late.url())),
            "Complete",
            "Trained",
        ),
        // Data.
        fails("missing-csv", "DatasetNotFound", |j| source(j, "missing.csv")),
        fails("empty-csv", "DatasetEmpty", |j| source(j, "empty.csv")),
        fails("no-rows", "DatasetEmpty", |j| source(j, "no-rows.csv")),
        fails("wrong-column", "ColumnMissing", |j| source(j, "wrong-column.csv")),
        fails("one-class", "SingleClass", |j| source(j, "one-class.csv")),
        fails("label-in-test-only", "LabelNotInTrain", |j| {
            j["dataset"]["validation"] = json!([{"uri": "s3://bad-inputs/good.csv"}]);
            j["dataset"]["test"] = json!([{"uri": "s3://bad-inputs/other-label.csv"}]);
        }),
        fails("broken-utf8", "DatasetInvalid", |j| source(j, "broken-utf8.csv")),
        // The pretrained folder.
        fails("no-pretrained", "PretrainedNotFound", |j| pretrained(j, "nowhere")),
        fails("no-tokenizer", "TokenizerMissing", |j| pretrained(j, "no-tokenizer")),
        fails("truncated-weights", "WeightsInvalid", |j| pretrained(j, "truncated")),
        fails("lying-header", "WeightsInvalid", |j| pretrained(j, "lying")),
        // The cluster.
        of(
            training("missing-secret", |j| {
                j["storage"]["secretRef"]["name"] = json!("nowhere")
            }),
            "Running",
            "PodConfigInvalid",
        ),
        // After 75 s another attempt tries elsewhere, which on a slow machine is within the minute.
        with(
            of(
                training("missing-image", |j| {
                    j["trainer"]["image"] = json!("localhost/nowhere:1")
                }),
                "Running",
                "ImagePullFailed",
            ),
            |row| row.attempts(2).writes(RETRY_WRITES),
        ),
        of(training("missing-ca", missing_ca), "Running", "PodNotPrepared"),
        with(
            of(
                training("lost-with-its-pod", |j| j["output"]["uri"] = json!("file:///tmp/out")),
                "Ready",
                "InvalidSpec",
            ),
            |row| row.says("PersistentVolumeClaim").attempts(0),
        ),
        with(
            fails("cuda-without-gpu", "MaxRestartsExceeded", |j| {
                j["trainer"]["accelerator"] = class("a100-cuda");
            }),
            |row| row.says("GpuUnavailable"),
        ),
        with(
            of(
                training("no-such-class", |j| j["trainer"]["accelerator"] = class("tpu")),
                "Admitted",
                "UnknownAcceleratorClass",
            ),
            |row| row.attempts(0),
        ),
        of(
            training("no-matching-gpu", |j| j["trainer"]["accelerator"] = class("h100")),
            "Admitted",
            "NoMatchingGPU",
        ),
        // Versions. What may mend itself is tried again, more slowly each time.
        of(
            version("missing-ca", &nowhere, missing_ca),
            "Verified",
            "PodNotPrepared",
        ),
        of(
            version("missing-artifact", &nowhere, |_| ()),
            "Verified",
            "ArtifactNotFound",
        ),
        with(
            of(
                version("wrong-credentials", &nowhere, |v| {
                    v["storage"]["secretRef"]["name"] = json!("wrong")
                }),
                "Verified",
                "StorageForbidden",
            ),
            |row| row.attempts(4).writes(12),
        ),
        with(
            of(
                version("storage-refuses", &nowhere, |v| endpoint(v, &stores.refusing.url())),
                "Verified",
                "StorageUnavailable",
            ),
            |row| row.attempts(2).writes(4),
        ),
        with(
            of(
                version("storage-is-silent", &nowhere, |v| endpoint(v, &stores.silent.url())),
                "Verified",
                "StorageUnavailable",
            ),
            |row| row.attempts(2).writes(4),
        ),
        // Services. The kubelet restarts their containers, more slowly each time.
        with(
            unready("no-version", "ModelVersionNotFound", |s| {
                s["modelVersion"] = json!("nowhere")
            }),
            |row| row.attempts(0),
        ),
        with(
            unready("other-model", "ModelMismatch", |s| s["model"] = json!("other")),
            |row| row.attempts(0),
        ),
        with(
            unready("service-no-such-class", "UnknownAcceleratorClass", |s| {
                s["accelerator"] = class("tpu");
            }),
            |row| row.attempts(0),
        ),
        unready("service-no-matching-gpu", "NoMatchingGPU", |s| {
            s["accelerator"] = class("h100")
        }),
        unready("service-missing-image", "ImagePullFailed", |s| {
            s["server"]["image"] = json!("localhost/nowhere:1");
        }),
        unready("service-missing-volume", "PodNotPrepared", |s| {
            s["server"]["pod"] = json!({
                "volumes": [{"name": "words", "configMap": {"name": "nowhere"}}],
                "volumeMounts": [{"name": "words", "mountPath": "/words"}]
            });
        }),
        unready("service-missing-secret", "PodConfigInvalid", |s| {
            s["storage"]["secretRef"]["name"] = json!("nowhere");
        }),
        with(
            unready("service-wrong-credentials", "CrashLoop", |s| {
                s["storage"]["secretRef"]["name"] = json!("wrong");
            }),
            |row| row.says("StorageForbidden").writes(CRASH_WRITES),
        ),
        with(
            unready("service-cuda-without-gpu", "CrashLoop", |s| {
                s["accelerator"] = class("a100-cuda");
            }),
            |row| row.says("GpuUnavailable").writes(CRASH_WRITES),
        ),
    ]
}

/// A container that ends at once is started anew after 10, 20 and 40 s; each time the status tells the count.
const CRASH_WRITES: usize = 5;

/// Applies an object and judges its row.
fn settle(bench: &Bench, object: &Value, row: &Row) {
    apply(object);
    bench.settle(row);
}

/// There is an artifact, but not the one that the digest names.
fn wrong_digest(bench: &Bench) {
    let mut artifact = bench.good_artifact();
    artifact["digest"] = json!(zeros());
    let version = version("wrong-digest", &artifact, |_| ());
    let service = service("of-wrong-digest", |s| {
        s["model"] = json!("bad");
        s["modelVersion"] = json!("wrong-digest");
    });
    // The operator's own view may be behind ours for a moment, so the service comes when the minute is over.
    settle(bench, &version, &refused(&version));
    settle(bench, &service, &refused_with(&service).attempts(0));
}

/// A version that its verification refuses.
fn refused(version: &Value) -> Row {
    ends(version, "Verified", "DigestMismatch").says("digest is sha256:")
}

/// A service that names it.
fn refused_with(service: &Value) -> Row {
    ends(service, "Ready", "ModelVersionNotVerified").says("DigestMismatch")
}

/// A byte of a file was changed before the version was made.
fn changed_before(bench: &Bench) {
    let artifact = copy_of(&bench.good_artifact(), "changed-before");
    bucket(&["flip", "changed-before/model.safetensors"]);
    let version = version("changed-before", &artifact, |_| ());
    let service = service("of-changed-before", |s| {
        s["model"] = json!("bad");
        s["modelVersion"] = json!("changed-before");
    });
    // The service gets its pod before the version is verified, and loses it then.
    apply(&json!({"apiVersion": "v1", "kind": "List", "items": [service, version]}));
    std::thread::scope(|scope| {
        scope.spawn(|| bench.settle(&refused(&version)));
        scope.spawn(|| bench.settle(&refused_with(&service)));
    });
    let left = list("pods", NAMESPACE, "flywheel.dev/inference-service=of-changed-before");
    assert!(left.is_empty(), "pods that can never answer are left: {left:?}");
}

/// A byte of a file was changed after the version was verified: the version is not read again, and a pod that starts with
/// it refuses it.
fn changed_after(bench: &Bench) {
    let artifact = copy_of(&bench.good_artifact(), "changed-after");
    apply(&version("changed-after", &artifact, |_| ()));
    bench.becomes("modelversion", "changed-after", "Verified");
    bucket(&["flip", "changed-after/model.safetensors"]);
    let service = service("of-changed-after", |s| {
        s["model"] = json!("bad");
        s["modelVersion"] = json!("changed-after");
    });
    let row = ends(&service, "Ready", "CrashLoop")
        .says("DigestMismatch")
        .writes(CRASH_WRITES);
    settle(bench, &service, &row);
    bench.becomes("modelversion", "changed-after", "Verified");
}

/// A copy of an artifact in a folder of its own.
fn copy_of(artifact: &Value, folder: &str) -> Value {
    let uri = artifact["uri"].as_str().expect("uri");
    let key = uri.strip_prefix("s3://bad-inputs/").expect("an artifact of this test");
    bucket(&["copy", &format!("{key}/"), &format!("{folder}/")]);
    json!({"uri": format!("s3://bad-inputs/{folder}"), "digest": artifact["digest"]})
}

/// What two names have in common that children's names are cut to.
const LONG: &str = "every-lamp-of-the-whole-house-in-every-room-and-on-each-floor";

/// Two long names that differ in their last letter: their children are told apart by a hash, and both work.
fn long_names(bench: &Bench) {
    let names = [format!("{LONG}-x"), format!("{LONG}-y")];
    for name in &names {
        assert_eq!(name.len(), 63, "as long as a name may be");
        apply(&training(name, |_| ()));
        apply(&service(name, |_| ()));
    }
    std::thread::scope(|scope| {
        for name in &names {
            scope.spawn(|| {
                bench.settle(&ends(&training(name, |_| ()), "Complete", "Trained"));
            });
            scope.spawn(|| {
                bench.settle(&ends(&service(name, |_| ()), "Ready", "AsExpected"));
            });
        }
    });
    let mut versions = vec![];
    for name in &names {
        let job = bench.becomes("trainingjob", name, "Complete");
        let version = job["status"]["result"]["modelVersion"].as_str().expect("modelVersion");
        bench.becomes("modelversion", version, "Verified");
        versions.push(version.to_owned());
        let pods = list("pods", NAMESPACE, &format!("flywheel.dev/inference-service={name}"));
        let address = pods[0]["status"]["podIP"].as_str().expect("podIP");
        let (code, answer) = predict(
            &format!("http://{address}:8080/predict"),
            &json!({"text": "switch on the lamp 3"}),
        );
        assert_eq!(
            (code, &answer["model_version"]),
            (200, &json!(GOOD_VERSION)),
            "{answer}"
        );
    }
    let children = |kind: &str, label: &str, suffix: &str| {
        let names: Vec<String> = names
            .iter()
            .flat_map(|name| list(kind, NAMESPACE, &format!("flywheel.dev/{label}={name}")))
            .filter_map(|child| child["metadata"]["name"].as_str().map(str::to_owned))
            .filter(|name| kind != "configmaps" || name.ends_with(ASSIGNMENT) == (suffix == ASSIGNMENT))
            .collect();
        apart(&names, suffix);
    };
    apart(&versions, "");
    children("jobs", "training-job", "-train-1");
    // What pods read at their start, and what they follow.
    children("configmaps", "inference-service", "");
    children("configmaps", "inference-service", ASSIGNMENT);
    children("controllerrevisions", "inference-service", "");
}

/// End of the name of the ConfigMap that pods follow.
const ASSIGNMENT: &str = "-serving";

/// Two names that were cut to the same beginning, and differ nevertheless.
fn apart(names: &[String], suffix: &str) {
    let [x, y] = names else {
        panic!("not two children: {names:?}");
    };
    let same = x.bytes().zip(y.bytes()).take_while(|(x, y)| x == y).count();
    assert!(
        x != y && same > 20 && LONG.starts_with(&x[..same.min(30)]),
        "{x} and {y} do not begin alike, or are one"
    );
    assert!(
        x.len() <= 63 && y.len() <= 63 && x.ends_with(suffix) && y.ends_with(suffix),
        "{x}, {y}"
    );
}

/// A stranger has the name that a child needs: a clear condition, and the stranger stays as it is.
fn names_taken(bench: &Bench) {
    let job = |name: &str| {
        json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": {
            "suspend": true,
            "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "localhost/flywheel-pause:dev"}]}}
        }})
    };
    let front = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "taken", "namespace": NAMESPACE},
        "spec": {"selector": {"app": "somebody-elses"}, "ports": [{"port": 80}]}});
    let pods = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "taken-too", "namespace": NAMESPACE}, "spec": {
        "replicas": 0, "selector": {"matchLabels": {"app": "somebody-elses"}},
        "template": {"metadata": {"labels": {"app": "somebody-elses"}}, "spec": {"containers": [{"name": "c", "image": "localhost/flywheel-pause:dev"}]}}
    }});
    let strangers = [
        ("job", "taken-train-1"),
        ("job", "taken-verify"),
        ("service", "taken"),
        ("deployment", "taken-too"),
    ];
    for stranger in [job("taken-train-1"), job("taken-verify"), front, pods] {
        apply(&stranger);
    }
    // Without what their own controllers write.
    let as_they_are = || {
        strangers.map(|(kind, name)| {
            let mut stranger = get(kind, NAMESPACE, name).expect("the stranger is there");
            stranger["status"].take();
            for own in ["annotations", "resourceVersion"] {
                stranger["metadata"][own].take();
            }
            stranger
        })
    };
    let before = as_they_are();
    let taken = [
        training("taken", |_| ()),
        version(
            "taken",
            &json!({"uri": "s3://bad-inputs/nowhere", "digest": zeros()}),
            |_| (),
        ),
        service("taken", |_| ()),
        service("taken-too", |_| ()),
    ];
    taken.iter().for_each(apply);
    std::thread::scope(|scope| {
        for (object, condition) in taken.iter().zip(["Admitted", "Verified", "Ready", "Ready"]) {
            scope.spawn(move || bench.settle(&ends(object, condition, "NameTaken").says("taken").attempts(0)));
        }
    });
    for (before, after) in before.iter().zip(as_they_are()) {
        assert_eq!(*before, after, "a stranger was changed");
    }
}

/// Somebody's data in the output folder of a job.
struct Foreign {
    name: &'static str,
    /// In the job's own folder, or beside it.
    inside: bool,
    files: &'static [&'static str],
    /// Whether it is in the job's way.
    conflict: bool,
}

/// What a job writes, whichever of it is looked at first.
const FOREIGN: &[Foreign] = &[
    Foreign {
        name: "foreign-everywhere",
        inside: true,
        files: &[
            "HEAD",
            "result.json",
            "attempt-1.json",
            "attempt-1.result.json",
            "attempt-1/manifest.json",
            "attempt-1/model.safetensors",
            "checkpoints/1/manifest.json",
        ],
        conflict: true,
    },
    Foreign {
        name: "foreign-artifact",
        inside: true,
        files: &["attempt-1/manifest.json", "attempt-1/model.safetensors"],
        conflict: true,
    },
    Foreign {
        name: "foreign-result",
        inside: true,
        files: &["result.json", "attempt-1.result.json"],
        conflict: true,
    },
    // Names that mean something to us, and are not where they would.
    Foreign {
        name: "foreign-and-in-no-way",
        inside: true,
        files: &[
            "README",
            "manifest.json",
            "checkpoints/notes",
            "checkpoints/1/manifest.json",
        ],
        conflict: false,
    },
    Foreign {
        name: "foreign-beside",
        inside: false,
        files: &[
            "HEAD",
            "manifest.json",
            "model.safetensors",
            "somebody/HEAD",
            "somebody/attempt-1/manifest.json",
        ],
        conflict: false,
    },
];

/// Somebody's data where the job will write: never overwritten, and no part of it taken for ours.
fn foreign_data(bench: &Bench) {
    std::thread::scope(|scope| {
        for foreign in FOREIGN {
            scope.spawn(|| among(bench, foreign));
        }
    });
}

fn among(bench: &Bench, foreign: &Foreign) {
    let (name, conflict) = (foreign.name, foreign.conflict);
    let proxy = Proxy::start(Fault::None);
    // The job's folder is named by its uid, which the API server gives it: it begins suspended.
    let job = training(name, |j| {
        endpoint(j, &proxy.url());
        j["output"]["uri"] = json!(format!("s3://bad-inputs/{name}"));
        j["suspend"] = json!(true);
    });
    apply(&job);
    let uid = bench.uid("trainingjob", name);
    let folder = if foreign.inside {
        format!("{name}/{uid}")
    } else {
        name.to_owned()
    };
    let keys: Vec<String> = foreign.files.iter().map(|file| format!("{folder}/{file}")).collect();
    let mut command = vec!["put"];
    command.extend(keys.iter().map(String::as_str));
    bucket(&command);
    let before = digests(&format!("{name}/"));
    assert_eq!(before.len(), keys.len(), "{before:?}");
    kubectl(&[
        "patch",
        "trainingjob",
        "-n",
        NAMESPACE,
        name,
        "--type=merge",
        "-p",
        r#"{"spec": {"suspend": false}}"#,
    ])
    .expect("kubectl patch");
    bench.settle(&if conflict {
        ends(&job, "Failed", "OutputConflict").says("neither")
    } else {
        ends(&job, "Complete", "Trained")
    });
    let after = digests(&format!("{name}/"));
    for (key, digest) in &before {
        assert_eq!(after.get(key), Some(digest), "{key} was overwritten");
    }
    // What lies where the artifact will be is not even read; what is in no way is not asked for at all.
    let requests = proxy.requests();
    assert!(!requests.is_empty());
    for key in &keys {
        let asked: Vec<&String> = requests
            .iter()
            .filter(|r| r.ends_with(&format!(" /bad-inputs/{key}")))
            .collect();
        let read = |request: &str| request.starts_with("GET ");
        let allowed = |request: &str| conflict && !(key.contains("attempt-1/") && read(request));
        assert!(asked.iter().all(|request| allowed(request)), "{name}: {asked:?}");
    }
}

/// The OCI archive of the trainer's image, as `make images` left it for this profile.
fn trainer_image() -> PathBuf {
    let program = localcluster();
    let profile = program.parent().and_then(Path::file_name).expect("profile folder");
    let images = PathBuf::from(need("FLYWHEEL_CACHE")).join("images");
    images.join(profile).join("trainer.tar")
}

/// A node cannot have the image: when that has lasted too long the next attempt goes to another node, which can.
fn image_on_one_node(bench: &Bench) {
    let name = "image-on-one-node";
    // By a name of its own, as nodes keep what another run has left.
    let image = &format!("localhost/trainer-of-one-node:{}", std::process::id());
    let job = training(name, |j| j["trainer"]["image"] = json!(image));
    apply(&job);
    bench
        .mirror
        .wait(("trainingjob", name), "ImagePullFailed", SOON, |seen| {
            condition(seen.get("trainingjob", name)?, "Ready")
                .filter(|c| c.1 == "ImagePullFailed")
                .map(|_| ())
        });
    let node_of = |attempt: u32| {
        let selector = format!("flywheel.dev/training-job={name},flywheel.dev/attempt={attempt}");
        let pods = list("pods", NAMESPACE, &selector);
        pods[0]["spec"]["nodeName"].as_str().expect("a node").to_owned()
    };
    let without = node_of(1);
    let nodes = list("nodes", "", "nvidia.com/gpu.product=NVIDIA-A100-SXM4-40GB");
    let mut names = nodes.iter().filter_map(|node| node["metadata"]["name"].as_str());
    let other = names.find(|name| *name != without).expect("another node of the class");
    run(
        Command::new(localcluster())
            .args(["load-image", "--node", other, "--as", image])
            .arg(trainer_image()),
        None,
    )
    .expect("load-image");
    bench.settle(&ends(&job, "Complete", "Trained").attempts(2));
    assert_eq!(node_of(2), other);
    let job = get("trainingjob", NAMESPACE, name).expect("the job");
    let incident = &job["status"]["recovery"]["incidents"][0];
    assert_eq!(
        (&incident["cause"], &incident["node"]),
        (&json!("ImagePullFailed"), &json!(without)),
        "{incident}"
    );
    let seconds = incident["detectSeconds"].as_i64().expect("detectSeconds");
    assert!((75..100).contains(&seconds), "{incident}");
    assert_eq!(job["status"]["countedRestarts"], json!(0), "it does not count");
    let condition = condition(&job, "RecoveryWithinDeadline").expect("RecoveryWithinDeadline");
    assert_eq!(condition.0, "True", "{condition:?}");
}

/// The storage goes in the middle of a download and comes back: the next attempt goes well.
fn storage_comes_back(bench: &Bench) {
    let proxy = Proxy::start(Fault::Leaves {
        part: WEIGHTS,
        after: 100_000,
    });
    let job = training("storage-comes-back", |j| {
        endpoint(j, &proxy.url());
        j["recovery"]["maxRestarts"] = json!(1);
    });
    apply(&job);
    bench
        .mirror
        .wait(("trainingjob", "storage-comes-back"), "Restarting", SOON, |seen| {
            condition(seen.get("trainingjob", "storage-comes-back")?, "Restarting")
                .filter(|c| c.0 == "True" && c.1 == "StorageUnavailable")
                .map(|_| ())
        });
    assert!(proxy.is_gone());
    proxy.come_back();
    bench.settle(&ends(&job, "Complete", "Trained").attempts(2));
}

/// A serving pod waits for its storage three times, a minute each, before it gives up, and the minute in which nothing may be
/// written is the first of them. Its version is not verified yet, which is no reason not to serve it.
fn silent_storage_of_a_service(bench: &Bench) {
    const NAME: &str = "service-storage-is-silent";
    let proxy = Proxy::start(Fault::Silent);
    let service = service(NAME, |s| {
        s["model"] = json!("bad");
        s["modelVersion"] = json!("storage-is-silent");
        endpoint(s, &proxy.url());
    });
    let row = ends(&service, "Ready", "Loading");
    settle(bench, &service, &row);
    bench
        .mirror
        .wait(("inferenceservice", NAME), "Ready CrashLoop", ROW_LIMIT, |seen| {
            condition(seen.get("inferenceservice", NAME)?, "Ready")
                .filter(|c| c.1 == "CrashLoop" && c.2.contains("StorageUnavailable"))
                .map(|_| ())
        });
}
