//! Which parties get a task: a draw without replacement, as a function from data to data.
//!
//! Called by `proposals` when a proposal closes. Draws no randomness itself: the seed is an input, so a history can be replayed.

/// A generator of Steele, Lea and Flood ("Fast splittable pseudorandom number generators", 2014): one multiply-shift chain per number,
/// good enough for a fair draw, and fixed here so that a replay never depends on the version of a library.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0. The bias is below `bound / 2^64`.
    fn below(&mut self, bound: usize) -> usize {
        let wide = u128::from(self.next()) * (bound as u128);
        (wide >> 64) as usize
    }
}

/// `count` of the candidates (all of them if there are fewer), each at most once, in random order. The same candidates and the same
/// seed give the same draw.
pub fn draw<T>(mut candidates: Vec<T>, count: usize, seed: u64) -> Vec<T> {
    let mut random = SplitMix64(seed);
    let count = count.min(candidates.len());
    for i in 0..count {
        let other = i + random.below(candidates.len() - i);
        candidates.swap(i, other);
    }
    candidates.truncate(count);
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_generator_gives_the_published_numbers() {
        // The reference outputs for seed 1234567, as published with the algorithm.
        let mut random = SplitMix64(1_234_567);
        let numbers: Vec<u64> = (0..3).map(|_| random.next()).collect();
        assert_eq!(
            numbers,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn every_candidate_is_drawn_about_equally_often_at_every_place() {
        let mut seen = [[0u32; 4]; 2];
        for seed in 0..4000 {
            for (place, party) in draw(vec![0, 1, 2, 3], 2, seed).into_iter().enumerate() {
                seen[place][party] += 1;
            }
        }
        assert!(seen.iter().flatten().all(|n| (850..1150).contains(n)), "{seen:?}");
    }

    proptest! {
        #[test]
        fn a_draw_takes_distinct_candidates_and_repeats_for_its_seed(n in 0usize..50, count in 0usize..60, seed: u64) {
            let candidates: Vec<usize> = (0..n).collect();
            let drawn = draw(candidates.clone(), count, seed);
            prop_assert_eq!(drawn.len(), count.min(n));
            prop_assert_eq!(drawn.iter().collect::<BTreeSet<_>>().len(), drawn.len());
            prop_assert!(drawn.iter().all(|i| *i < n));
            prop_assert_eq!(draw(candidates, count, seed), drawn);
        }
    }
}
