//! The file behind `--config`: the rules an operator sets for this party.

use super::retention::Retention;
use crate::machine::master::rule::ProposalAcceptRule;
use anyhow::Context;
use serde::Deserialize;
use std::path::Path;
use std::time::Duration;

/// The whole file, TOML; every key is optional.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Settings {
    /// Which proposals this party joins.
    pub accept: ProposalAcceptRule,
    /// Propose again when a FedVision 0.1 coordinator may or may not have seen the proposal; the default is to fail the job.
    pub propose_again: bool,
    /// How often a task is submitted that the cluster manager refuses, with growing pauses of up to 5 s.
    pub submit_tries: u32,
    /// Limits on compiling.
    pub preparing: Preparing,
    /// Limits on the steps of `paddle_fl`.
    pub paddle_fl: PaddleFl,
    /// How long calls to other roles may take.
    pub patience: Patience,
    /// Who goes first where jobs wait.
    pub jobs: Jobs,
    /// How long history is kept.
    pub retention: Retention,
}

/// Who goes first where jobs wait.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Jobs {
    /// Minutes of waiting that are worth one point of priority.
    pub ageing_minutes: u32,
}

impl Jobs {
    /// As a duration.
    pub(super) fn ageing(&self) -> Duration {
        Duration::from_secs(u64::from(self.ageing_minutes) * 60)
    }
}

impl Default for Jobs {
    fn default() -> Self {
        Self { ageing_minutes: 5 }
    }
}

/// Limits on the steps of `paddle_fl`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PaddleFl {
    /// Seconds a compile step may take; the real ones take seconds, with a model to fetch minutes.
    pub compile_timeout: u32,
}

impl Default for PaddleFl {
    fn default() -> Self {
        Self { compile_timeout: 1800 }
    }
}

/// How long calls to other roles may take, seconds: none is ever without a limit, since a FedVision 0.1 peer can leave one unanswered for ever.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Patience {
    /// A Proposal, beyond its window: a call given up early would leave the parties of a FedVision 0.1 coordinator waiting for ever.
    pub proposal_s: u64,
    /// A FetchTask, which is open until the window closes. At a FedVision 0.1 coordinator the party then gives the proposal up; else it asks again.
    pub fetch_s: u64,
    /// A call to the cluster manager: a payload of 512 MiB must get through.
    pub cluster_s: u64,
}

impl Patience {
    /// A week: more is none at all.
    const MOST_S: u64 = 7 * 24 * 3600;
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            proposal_s: 60,
            fetch_s: 3600,
            cluster_s: 120,
        }
    }
}

/// Limits on compiling.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Preparing {
    /// Jobs compiled at once: a compile step takes a core.
    pub at_once: usize,
}

impl Default for Preparing {
    fn default() -> Self {
        Self { at_once: 4 }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            accept: ProposalAcceptRule::default(),
            propose_again: false,
            submit_tries: 10,
            preparing: Preparing::default(),
            paddle_fl: PaddleFl::default(),
            patience: Patience::default(),
            jobs: Jobs::default(),
            retention: Retention::default(),
        }
    }
}

impl Settings {
    /// Read the file, or take the defaults when there is none.
    pub(super) fn read(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else { return Ok(Self::default()) };
        let text = std::fs::read_to_string(path).with_context(|| format!("--config: cannot read {}", path.display()))?;
        let settings: Self = toml::from_str(&text).with_context(|| format!("--config: {} is not right", path.display()))?;
        anyhow::ensure!(settings.submit_tries > 0, "--config: submit_tries must be at least 1");
        anyhow::ensure!(settings.preparing.at_once > 0, "--config: preparing.at_once must be at least 1");
        anyhow::ensure!(
            (1..=86_400).contains(&settings.retention.every_s),
            "--config: retention.every_s must be 1 to 86400"
        );
        anyhow::ensure!(
            (1..=10_080).contains(&settings.jobs.ageing_minutes),
            "--config: jobs.ageing_minutes must be 1 to 10080"
        );
        let Patience {
            proposal_s,
            fetch_s,
            cluster_s,
        } = settings.patience;
        for (key, limit) in [("proposal_s", proposal_s), ("fetch_s", fetch_s), ("cluster_s", cluster_s)] {
            let (least, most) = (1, Patience::MOST_S);
            anyhow::ensure!(
                (least..=most).contains(&limit),
                "--config: patience.{key} must be {least} to {most}"
            );
        }
        anyhow::ensure!(
            settings.accept.at_once != Some(0),
            "--config: accept.at_once must be at least 1; to take part in nothing, give the master no --job-types"
        );
        let both = settings
            .accept
            .initiators
            .iter()
            .find(|party| settings.accept.not_initiators.contains(party));
        if let Some(party) = both {
            anyhow::bail!("--config: {party} is in accept.initiators and in accept.not_initiators; leave it in one");
        }
        anyhow::ensure!(
            settings.paddle_fl.compile_timeout > 0,
            "--config: paddle_fl.compile_timeout must be at least 1 second"
        );
        Ok(settings)
    }

    /// Whether a rule names a job type this party does not subscribe to: it would never be met.
    pub(super) fn check_types(&self, subscribed: &[String]) -> anyhow::Result<()> {
        match self.accept.job_types.iter().find(|wanted| !subscribed.contains(wanted)) {
            Some(odd) => anyhow::bail!(
                "--config: accept.job_types has {odd}, and --job-types does not ({})",
                subscribed.join(",")
            ),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_refused_and_all_keys_are_optional() {
        assert!(toml::from_str::<Settings>("nonsense = 1").is_err());
        let settings: Settings = toml::from_str("[accept]\njob_types = [\"program\"]\nat_once = 3\n").unwrap();
        assert_eq!((settings.accept.at_once, settings.submit_tries), (Some(3), 10));
    }

    #[test]
    fn rules_that_can_never_be_met_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rules.toml");
        let refused = |text: &str| {
            std::fs::write(&path, text).unwrap();
            let read = Settings::read(Some(&path)).and_then(|settings| settings.check_types(&["dummy".to_owned()]));
            read.unwrap_err().to_string()
        };
        assert!(refused("[accept]\nat_once = 0").contains("accept.at_once"));
        assert!(refused("[accept]\ninitiators = [\"a\"]\nnot_initiators = [\"b\", \"a\"]").contains("a is in accept.initiators"));
        assert!(refused("[accept]\njob_types = [\"dummy\", \"dumy\"]").contains("has dumy, and --job-types does not (dummy)"));
    }
}
