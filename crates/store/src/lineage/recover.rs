//! What a `HEAD` that cannot be read may have named: the checkpoints that lie there and show by themselves whose they are.
//!
//! Without `HEAD` a checkpoint counts where all of this holds: its folder has a name that is given here; the manifest has
//! the digest that the name tells, so it is the one that was written there; it is of this job, of that step, and of no later
//! attempt. Its files are checked by the manifest when it is fetched, as always. Such a one may never have been committed;
//! it is a whole state of this job all the same.
//!
//! What was found is put into the next `HEAD`, by which it is kept from being swept until it is judged.

use flywheel_contract::checkpoint::KEEP_MAX;

use super::*;

/// How far a new sequence lies above all that can be seen, where the damaged `HEAD` had the only one that counts. At a swap
/// each second it would take 136 years to come so far, so it is above that one.
const LEAP: u64 = 1 << 32;
/// Most checkpoints that are looked at: as many as a `HEAD` may keep.
const MOST: usize = KEEP_MAX as usize;

impl Place {
    /// What a new attempt begins with: the checkpoints that the damaged `HEAD` may have named, newest first, and those that
    /// the generation below names and that are still there; the sequence is above all that were in use.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] where something there is of a later attempt. [`StoreError::Head`] where nothing shows that the
    /// damaged one is this job's, or where the storage could not guard its replacement. Others of [`StoreError`] where the
    /// storage failed: then nothing is known.
    pub(super) async fn recover(&self, damage: &Damage, attempt: u32) -> Result<Head> {
        let mut head = damage.below.clone().unwrap_or_else(|| self.blank());
        self.check_attempt(head.attempt, attempt)?;
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
        if damage.below.is_none() && found.is_empty() {
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
        let taken = names.iter().map(|name| name.taken).max().unwrap_or(0);
        head.sequence = match self.local {
            Some(_) => damage.last.max(taken),
            None => taken.saturating_add(LEAP),
        };
        tracing::warn!(
            head = %self.head, problem = damage.problem, found = found.len(), older = head.checkpoints.len(),
            "HEAD is damaged: going on with the checkpoints that lie there"
        );
        // Those that newer ones took the place of are removed already.
        head.checkpoints.retain(|c| folders.contains(&c.name));
        head.checkpoints.splice(0..0, found);
        Ok(head)
    }
}
