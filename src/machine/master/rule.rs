//! Which proposals this party takes part in: a pure rule over an offer.

use crate::machine::ids::{PartyId, ProposalId, TypeName};
use serde::Deserialize;

/// The rule. The empty rule wants everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProposalAcceptRule {
    /// Job types wanted; empty means all this party subscribes to.
    pub job_types: Vec<String>,
    /// Parties whose jobs are wanted; empty means all. This party's own jobs are always wanted.
    pub initiators: Vec<String>,
    /// Parties whose jobs are not wanted, whatever `initiators` says.
    pub not_initiators: Vec<String>,
    /// How many fetches and won tasks may be under way at once; none means no limit.
    pub at_once: Option<u32>,
}

impl ProposalAcceptRule {
    /// Whether to take part.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn decide(&self, own: &PartyId, proposal: &ProposalId, job_type: &TypeName, under_way: u32) -> Result<(), String> {
        if !self.job_types.is_empty() && !self.job_types.iter().any(|wanted| wanted == job_type.as_str()) {
            return Err(format!("job type {job_type} is not wanted here"));
        }
        if !self.initiators.is_empty() || !self.not_initiators.is_empty() {
            self.decide_initiator(own, proposal)?;
        }
        match self.at_once {
            Some(limit) if under_way >= limit => Err(format!("{under_way} tasks of proposals are under way, {limit} are allowed at once")),
            _ => Ok(()),
        }
    }

    fn decide_initiator(&self, own: &PartyId, proposal: &ProposalId) -> Result<(), String> {
        let Some(initiator) = initiator(proposal) else {
            return Err("the initiator cannot be told from the proposal's id".to_owned());
        };
        if initiator == own.as_str() {
            return Ok(());
        }
        let named = |list: &[String]| list.iter().any(|party| party == initiator);
        if named(&self.not_initiators) || (!self.initiators.is_empty() && !named(&self.initiators)) {
            return Err(format!("jobs of {initiator} are not wanted here"));
        }
        Ok(())
    }
}

/// The party in `<party>-<YYYYmmddHHMMSS>-<n>-coo_<n>`, as far as the id tells.
pub fn initiator(proposal: &ProposalId) -> Option<&str> {
    let (job, _) = proposal.as_str().rsplit_once("-coo_")?;
    let (rest, number) = job.rsplit_once('-')?;
    let (party, stamp) = rest.rsplit_once('-')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (digits(number) && stamp.len() == 14 && digits(stamp) && !party.is_empty()).then_some(party)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(rule: &ProposalAcceptRule, proposal: &str, under_way: u32) -> Result<(), String> {
        let own = PartyId::parse("own").unwrap();
        rule.decide(
            &own,
            &ProposalId::parse(proposal).unwrap(),
            &TypeName::parse("dummy").unwrap(),
            under_way,
        )
    }

    #[test]
    fn the_empty_rule_wants_everything() {
        assert_eq!(decide(&ProposalAcceptRule::default(), "whatever", 1_000_000), Ok(()));
    }

    #[test]
    fn each_part_of_the_rule_can_refuse() {
        let types = ProposalAcceptRule {
            job_types: vec!["program".into()],
            ..Default::default()
        };
        assert!(decide(&types, "a-20261122212634-1-coo_1", 0).is_err());
        let friends = ProposalAcceptRule {
            initiators: vec!["a-b".into()],
            ..Default::default()
        };
        assert_eq!(decide(&friends, "a-b-20261122212634-1-coo_1", 0), Ok(()));
        assert_eq!(decide(&friends, "own-20261122212634-1-coo_1", 0), Ok(()));
        assert!(decide(&friends, "c-20261122212634-1-coo_1", 0).is_err());
        assert!(decide(&friends, "a-b", 0).is_err());
        let enemy = ProposalAcceptRule {
            not_initiators: vec!["c".into()],
            ..Default::default()
        };
        assert!(decide(&enemy, "c-20261122212634-1-coo_1", 0).is_err());
        assert_eq!(decide(&enemy, "d-20261122212634-1-coo_1", 0), Ok(()));
        let two = ProposalAcceptRule {
            at_once: Some(2),
            ..Default::default()
        };
        assert_eq!(decide(&two, "x", 1), Ok(()));
        assert!(decide(&two, "x", 2).is_err());
    }
}
