//! How this process was started, by what launchers of MPI leave in the environment.

/// Variables that hold the number of processes, the closest to the process first: an `mpirun` may run inside a step of
/// Slurm. Open MPI and its PRRTE; Hydra of MPICH and Intel MPI, PALS; MVAPICH; a step of Slurm, whose `srun` without a PMI
/// sets no other (`SLURM_NTASKS` is there for the batch script too, which is one process).
const SIZES: [&str; 4] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"];

/// Variables that hold the number of this process, of launchers that may give no size.
const RANKS: [&str; 3] = ["PMIX_RANK", "PMI_RANK", "PALS_RANKID"];

/// What a launcher left in the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The variable that says so.
    pub variable: &'static str,
    /// Its value.
    pub value: String,
    /// How many processes there are; `None` where the launcher does not say.
    pub size: Option<usize>,
}

/// What a launcher of MPI left in the environment, which `variable` looks up; `None` where there was none.
pub fn launch(variable: impl Fn(&str) -> Option<String>) -> Option<Launch> {
    let of = |name: &'static str| {
        let value = variable(name)?;
        let number = value.trim().parse::<usize>().ok()?;
        Some((name, value, number))
    };
    if let Some((variable, value, size)) = SIZES.into_iter().find_map(of) {
        return Some(Launch { variable, value, size: Some(size) });
    }
    RANKS.into_iter().find_map(of).map(|(variable, value, _)| Launch { variable, value, size: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(variables: &[(&str, &str)]) -> Option<(&'static str, Option<usize>)> {
        let of =
            |name: &str| variables.iter().find(|(variable, _)| *variable == name).map(|(_, value)| (*value).to_owned());
        launch(of).map(|launch| (launch.variable, launch.size))
    }

    #[test]
    fn launchers_are_told_from_programs_started_by_hand() {
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[("SLURM_NTASKS", "8"), ("SLURM_PROCID", "0")]), None);
        assert_eq!(
            found(&[("OMPI_COMM_WORLD_SIZE", "4"), ("PMIX_RANK", "3")]),
            Some(("OMPI_COMM_WORLD_SIZE", Some(4)))
        );
        assert_eq!(found(&[("PMI_RANK", "1"), ("PMI_SIZE", "2")]), Some(("PMI_SIZE", Some(2))));
        assert_eq!(found(&[("SLURM_STEP_NUM_TASKS", "1"), ("PMI_SIZE", "2")]), Some(("PMI_SIZE", Some(2))));
        assert_eq!(found(&[("SLURM_STEP_NUM_TASKS", "8"), ("SLURM_NTASKS", "8")]).unwrap().1, Some(8));
        assert_eq!(found(&[("PMIX_RANK", "0")]), Some(("PMIX_RANK", None)));
        assert_eq!(found(&[("PMI_SIZE", "two")]), None);
    }
}
