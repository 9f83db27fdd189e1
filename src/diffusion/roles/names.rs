//! Scores of input names: how well they fit the roles of sample and timestep.

use crate::runtime::random_inputs::is_time_step;

pub(super) fn words(name: &str) -> Vec<String> {
    name.to_ascii_lowercase().split(|c: char| !c.is_ascii_alphanumeric()).map(str::to_owned).collect()
}

/// Scores how clearly the name is that of a sample input. 0: not at all.
pub(super) fn sample_score(name: &str) -> u8 {
    let name = name.to_ascii_lowercase();
    let exact = ["sample", "x", "x_t", "xt", "x_noisy", "noisy", "z", "z_t", "zt", "hidden_states", "input", "image"];
    let plural = ["samples", "latents", "latent", "images", "noisy_sample", "noisy_latents", "noisy_image", "audio"];
    if exact.contains(&name.as_str()) || plural.contains(&name.as_str()) {
        return 2;
    }
    let words = words(&name);
    let has = |word: &str| words.iter().any(|found| found == word);
    let says = ["noisy", "sample", "latent", "latents"].into_iter().any(has);
    u8::from(says && !["cond", "mask", "self", "encoder", "text"].into_iter().any(has))
}

/// Scores how clearly the name is that of a time input. 0: not at all.
pub(super) fn time_score(name: &str) -> u8 {
    let exact =
        ["timestep", "timesteps", "t", "sigma", "sigmas", "time", "noise_level", "noise_levels", "noise_labels"];
    if exact.contains(&name.to_ascii_lowercase().as_str()) {
        return 2;
    }
    let words = words(name);
    let has = |word: &str| words.iter().any(|found| found == word);
    if ["cond", "ids", "size", "guidance", "mask", "augmentation"].into_iter().any(has) {
        return 0;
    }
    u8::from(is_time_step(name) || ["sigma", "sigmas", "noise", "snr", "logsnr", "time"].into_iter().any(has))
}
