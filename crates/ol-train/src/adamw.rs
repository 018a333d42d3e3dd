//! AdamW (Loshchilov and Hutter, 2019) in f32.

/// First and second moments of every parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    pub(crate) first: Vec<f32>,
    pub(crate) second: Vec<f32>,
    pub(crate) steps: u32,
    beta1: f32,
    beta2: f32,
    decay: f32,
}

const EPSILON: f32 = 1e-8;

impl AdamW {
    /// Zero moments for `n` parameters; `decay` is the decoupled weight decay.
    #[must_use]
    pub fn new(n: usize, beta1: f32, beta2: f32, decay: f32) -> Self {
        Self {
            first: vec![0.0; n],
            second: vec![0.0; n],
            steps: 0,
            beta1,
            beta2,
            decay,
        }
    }

    /// One step down `gradient`; `decays` says which parameters decay.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn step(&mut self, params: &mut [f32], gradient: &[f32], decays: &[bool], rate: f32) {
        let n = self.first.len();
        assert!(
            params.len() == n && gradient.len() == n && decays.len() == n,
            "one value a parameter"
        );
        self.steps += 1;
        let correct = |beta: f32| 1.0 - libm::pow(f64::from(beta), f64::from(self.steps));
        #[expect(
            clippy::cast_possible_truncation,
            reason = "rounding to f32 is what is wanted"
        )]
        let (rate1, root2) = (
            (f64::from(rate) / correct(self.beta1)) as f32,
            (1.0 / correct(self.beta2)).sqrt() as f32,
        );
        let (beta1, beta2) = (self.beta1, self.beta2);
        let moments = self.first.iter_mut().zip(&mut self.second);
        for (((p, g), decay), (m, v)) in params.iter_mut().zip(gradient).zip(decays).zip(moments) {
            *m = beta1 * *m + (1.0 - beta1) * g;
            *v = beta2 * *v + (1.0 - beta2) * g * g;
            let shrink = if *decay { rate * self.decay * *p } else { 0.0 };
            *p -= rate1 * *m / (v.sqrt() * root2 + EPSILON) + shrink;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_moves_by_the_rate_against_the_sign() {
        let mut adam = AdamW::new(3, 0.9, 0.95, 0.0);
        let mut params = [1.0, 1.0, 1.0];
        adam.step(&mut params, &[0.3, -7.0, 0.0], &[false; 3], 0.1);
        for (p, want) in params.iter().zip([0.9, 1.1, 1.0]) {
            assert!((p - want).abs() < 1e-5, "{p} {want}");
        }
    }

    #[test]
    fn decay_shrinks_only_what_decays() {
        let mut adam = AdamW::new(2, 0.9, 0.95, 0.5);
        let mut params = [1.0, 1.0];
        adam.step(&mut params, &[0.0, 0.0], &[true, false], 0.1);
        assert_eq!(params, [0.95, 1.0]);
    }

    #[test]
    fn a_quadratic_is_minimised() {
        let mut adam = AdamW::new(2, 0.9, 0.95, 0.0);
        let mut params = [3.0_f32, -2.0];
        for _ in 0..500 {
            let gradient = [params[0] - 1.0, 10.0 * (params[1] - 0.5)];
            adam.step(&mut params, &gradient, &[false; 2], 0.05);
        }
        assert!(
            (params[0] - 1.0).abs() < 0.05 && (params[1] - 0.5).abs() < 0.05,
            "{params:?}"
        );
    }
}
