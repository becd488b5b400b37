//! Which version of a model a service takes by itself, and whether there is a newer one.

use flywheel_api::retraining::{AutoUpdate, UpdatePolicy};

/// A version of the service's model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// Its number.
    pub number: i64,
    /// It is verified, and its gates hold.
    pub promotable: bool,
    /// It did something that it must not do again.
    pub rejected: bool,
}

/// The newest version above the number of the one of this name that may take its place; none where that one is not there.
#[must_use]
pub fn newer<'a>(than: &str, exclude: &[String], candidates: &'a [Candidate]) -> Option<&'a Candidate> {
    newest(than, exclude, candidates, false)
}

/// The newest version that would take the place of the one of this name, were it not rejected.
#[must_use]
pub fn left_out<'a>(target: &str, auto: Option<&AutoUpdate>, candidates: &'a [Candidate]) -> Option<&'a Candidate> {
    newest(target, &auto?.exclude, candidates, true)
}

fn newest<'a>(than: &str, exclude: &[String], candidates: &'a [Candidate], rejected: bool) -> Option<&'a Candidate> {
    let present = candidates.iter().find(|candidate| candidate.name == than)?;
    let may = |candidate: &&Candidate| {
        candidate.number > present.number
            && candidate.promotable
            && candidate.rejected == rejected
            && !exclude.contains(&candidate.name)
    };
    // Two of one number, made by hand: the first by name, whatever the order in which they come.
    candidates
        .iter()
        .filter(may)
        .max_by(|a, b| a.number.cmp(&b.number).then(b.name.cmp(&a.name)))
}

/// The version that a service is to answer with: the one of `modelVersion`, or a newer one where the spec lets it.
#[must_use]
pub fn target<'a>(model_version: &'a str, auto: Option<&AutoUpdate>, candidates: &'a [Candidate]) -> &'a str {
    let Some(AutoUpdate {
        policy: UpdatePolicy::LatestPromotable,
        exclude,
    }) = auto
    else {
        return model_version;
    };
    newer(model_version, exclude, candidates).map_or(model_version, |candidate| &candidate.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str, number: i64) -> Candidate {
        Candidate {
            name: name.to_owned(),
            number,
            promotable: true,
            rejected: false,
        }
    }

    #[test]
    fn the_newest_that_may_is_taken() {
        let auto = |exclude: &[&str]| AutoUpdate {
            policy: UpdatePolicy::LatestPromotable,
            exclude: exclude.iter().map(|name| (*name).to_owned()).collect(),
        };
        let all = [
            candidate("v2", 2),
            candidate("v1", 1),
            candidate("v4", 4),
            candidate("v3", 3),
        ];
        assert_eq!(target("v2", None, &all), "v2");
        assert_eq!(target("v2", Some(&auto(&[])), &all), "v4");
        assert_eq!(target("v2", Some(&auto(&["v4"])), &all), "v3");
        assert_eq!(
            target("v2", Some(&auto(&["v4", "v3"])), &all),
            "v2",
            "never an older one"
        );
        assert_eq!(target("v4", Some(&auto(&[])), &all), "v4");
        assert_eq!(target("v9", Some(&auto(&[])), &all), "v9", "it is waited for");
        let with = |change: fn(&mut Candidate)| {
            let mut all = all.clone();
            change(&mut all[2]);
            target("v1", Some(&auto(&[])), &all).to_owned()
        };
        assert_eq!(with(|v4| v4.rejected = true), "v3");
        let left_out = |target: &str, exclude: &[&str], rejected: &[&str]| {
            let mut all = all.clone();
            all.iter_mut()
                .for_each(|v| v.rejected = rejected.contains(&v.name.as_str()));
            super::left_out(target, Some(&auto(exclude)), &all).map(|v| v.name.clone())
        };
        assert_eq!(left_out("v3", &[], &["v4"]).as_deref(), Some("v4"));
        assert_eq!(left_out("v2", &[], &["v3", "v4"]).as_deref(), Some("v4"), "the newest");
        assert_eq!(left_out("v4", &[], &["v3"]), None, "what is newer has come");
        assert_eq!(left_out("v3", &["v4"], &["v4"]), None, "nobody wants it");
        assert_eq!(left_out("v3", &[], &[]), None);
        assert_eq!(super::left_out("v1", None, &all), None);
        assert_eq!(with(|v4| v4.promotable = false), "v3");
        let twins = [candidate("v1", 1), candidate("b", 2), candidate("a", 2)];
        assert_eq!(target("v1", Some(&auto(&[])), &twins), "a");
        assert_eq!(newer("v1", &[], &[candidate("v1", 1)]), None);
    }
}
