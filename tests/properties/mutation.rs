//! New inputs out of known ones: bytes changed, pieces dropped, doubled, moved and put together.

use fastrand::Rng;

/// The longest input that is made.
const LENGTH_MAX: usize = 4096;

/// Makes inputs, the same from the same seed.
pub struct Mutation<'s> {
    rng: Rng,
    seeds: &'s [Vec<u8>],
}

impl<'s> Mutation<'s> {
    pub fn new(seed: u64, seeds: &'s [Vec<u8>]) -> Self {
        Self { rng: Rng::with_seed(seed), seeds }
    }

    /// One more.
    pub fn input(&mut self) -> Vec<u8> {
        let mut input = self.seed().to_vec();
        for _ in 0..self.rng.usize(1..6) {
            self.change(&mut input);
        }
        input.truncate(LENGTH_MAX);
        input
    }

    fn seed(&mut self) -> &'s [u8] {
        &self.seeds[self.rng.usize(0..self.seeds.len())]
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        const TELLING: &[u8] = b"\0\t\n\r \"#%&*,-./0129:;<=?@ABZ[\\]_az{|}~\x7f\x80\xff";
        let at = self.rng.usize(0..=input.len());
        let end = (at + self.rng.usize(0..12)).min(input.len());
        match self.rng.u32(0..8) {
            0 => drop(input.drain(at..end)),
            1 => {
                let piece = input[at..end].to_vec();
                input.splice(at..at, piece);
            }
            2 => {
                let other = self.seed();
                let from = self.rng.usize(0..=other.len());
                let to = (from + self.rng.usize(0..24)).min(other.len());
                input.splice(at..end, other[from..to].iter().copied());
            }
            3 if at < input.len() => input[at] = self.rng.u8(..),
            4 if at < input.len() => input[at] ^= 1 << self.rng.u32(0..8),
            5 => {
                let number = [0, 1, u64::MAX, 1 << 31, self.rng.u64(..)][self.rng.usize(0..5)];
                input.splice(at..end, number.to_string().into_bytes());
            }
            _ => input.insert(at, TELLING[self.rng.usize(0..TELLING.len())]),
        }
    }
}
