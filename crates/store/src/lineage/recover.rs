//! What a `HEAD` that cannot be read or is missing may have named: the checkpoints that lie there and show by themselves
//! whose they are.
//!
//! Without `HEAD` a checkpoint counts where all of this holds: its folder has a name that is given here; the manifest has
//! the digest that the name tells, so it is the one that was written there; it is of this job, of that step, and of no later
//! attempt. Its files are checked by the manifest when it is fetched, as always. Such a one may never have been committed;
//! it is a whole state of this job all the same.
//!
//! What was found is put into the next `HEAD`, by which it is kept from being swept until it is judged.

use flywheel_contract::checkpoint::KEEP_MAX;

use super::*;

/// Sequences begin anew at a multiple of this where no `HEAD` tells the last one: at the next above all that can be seen.
/// At a swap each second it would take 136 years to come from one to the next, so that is above the lost one. It is the same
/// for all who take over at once, also where a late upload of a replaced writer shows to one of them only; so on a file
/// system, where the number alone decides, one of them wins.
const LEAP: u64 = 1 << 32;
/// Most checkpoints that are looked at: as many as a `HEAD` may keep.
const MOST: usize = KEEP_MAX as usize;

/// What lies in the folder of checkpoints.
struct Lying {
    /// Names of all folders.
    folders: Vec<String>,
    /// Checkpoints that count without `HEAD`, newest first.
    found: Vec<CheckpointRef>,
    /// Highest sequence at which a writer of what lies there took the lineage, where anything does.
    taken: Option<u64>,
}

impl Lying {
    /// A sequence above all that were in use.
    fn sequence(&self) -> u64 {
        self.taken.map_or(0, |taken| (taken / LEAP + 1).saturating_mul(LEAP))
    }
}

impl Place {
    /// What a new attempt begins with where `HEAD` is damaged: the checkpoints that it may have named, newest first, and
    /// those that the generation below names and that are still there; the sequence is above all that were in use.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] where something there is of a later attempt. [`StoreError::Head`] where nothing shows that the
    /// damaged one is this job's, or where the storage could not guard its replacement. Others of [`StoreError`] where the
    /// storage failed: then nothing is known.
    pub(super) async fn recover(&self, damage: &Damage, attempt: u32) -> Result<Head> {
        let mut head = damage.below.clone().unwrap_or_else(|| self.blank());
        self.check_attempt(head.attempt, attempt)?;
        let lying = self.lying(&head, attempt).await?;
        if damage.below.is_none() && lying.found.is_empty() {
            return Err(self.not_ours(format!(
                "{}, and no checkpoint of this job lies beside it that would show that it is this job's",
                damage.problem
            )));
        }
        if self.local.is_none() && damage.version.e_tag.is_none() {
            return Err(self.not_ours(format!(
                "{}, and without an ETag of it none can be put in its place safely",
                damage.problem
            )));
        }
        head.sequence = match self.local {
            Some(_) => damage.last.max(lying.taken.unwrap_or(0)),
            None => lying.sequence(),
        };
        tracing::warn!(
            head = %self.head, problem = damage.problem, found = lying.found.len(), older = head.checkpoints.len(),
            "HEAD is damaged: going on with the checkpoints that lie there"
        );
        // Those that newer ones took the place of are removed already.
        head.checkpoints.retain(|c| lying.folders.contains(&c.name));
        head.checkpoints.splice(0..0, lying.found);
        Ok(head)
    }

    /// What a new attempt begins with where there is no `HEAD`: the checkpoints of this job that lie there all the same,
    /// newest first, or nothing.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] where something there is of a later attempt. Others of [`StoreError`] where the storage failed:
    /// then nothing is known.
    pub(super) async fn begin(&self, attempt: u32) -> Result<Head> {
        let mut head = self.blank();
        let lying = match self.lying(&head, attempt).await {
            // Credentials that may not list remove nothing either.
            Err(error @ StoreError::Forbidden { .. }) => {
                tracing::warn!(%error, "whether checkpoints lie here without {HEAD_FILE} cannot be seen");
                return Ok(head);
            }
            lying => lying?,
        };
        head.sequence = lying.sequence();
        if !lying.found.is_empty() {
            tracing::warn!(
                head = %self.head, found = lying.found.len(),
                "HEAD is missing: going on with the checkpoints that lie there"
            );
        }
        head.checkpoints = lying.found;
        Ok(head)
    }

    /// Looks at what lies there and is newer than what `head` names.
    async fn lying(&self, head: &Head, attempt: u32) -> Result<Lying> {
        let folders = self.store.list(&self.uri.join(CHECKPOINTS_DIR)).await?.folders;
        let mut names: Vec<Name> = folders.iter().filter_map(|name| Name::parse(name)).collect();
        // Also of those that are not whole: their writer was there.
        let latest = names.iter().map(|name| name.attempt).max().unwrap_or(0);
        self.check_attempt(latest, attempt)?;
        names.sort_unstable_by_key(|name| std::cmp::Reverse(name.age()));

        let older = head.checkpoints.iter().filter_map(|c| Name::parse(&c.name));
        let known = older.map(|name| name.age()).max();
        let mut found = Vec::new();
        // After the result none is committed, and what lies there is to be removed.
        let newer = names.iter().filter(|n| known.is_none_or(|known| n.age() > known));
        for name in newer.filter(|_| head.result.is_none()).take(MOST) {
            let sealed = |digest: &Digest| {
                if Name::seal(digest) == name.seal {
                    return Ok(());
                }
                Err(format!("is {digest}, its name tells another"))
            };
            match self.manifest(name, attempt, sealed).await {
                Ok((_, digest)) => found.push(name.named(digest)),
                Err(error @ StoreError::Checkpoint { .. }) => {
                    tracing::warn!(%error, "a checkpoint that HEAD does not name is left out");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Lying {
            taken: names.iter().map(|name| name.taken).max(),
            folders,
            found,
        })
    }
}
