//! Detects from the environment whether an MPI launcher started this process.

/// Variables that hold the number of processes, innermost launcher first: an `mpirun` may run inside a Slurm step.
///
/// - `OMPI_COMM_WORLD_SIZE`: Open MPI and its PRRTE
/// - `PMI_SIZE`: Hydra of MPICH and Intel MPI, and PALS
/// - `MV2_COMM_WORLD_SIZE`: MVAPICH
/// - `SLURM_STEP_NUM_TASKS`: a Slurm step, for which `srun` without a PMI sets no other variable (`SLURM_NTASKS` is
///   also set for the batch script, which is one process)
const SIZES: [&str; 4] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"];

/// Variables that hold the rank of this process, for launchers that may not set the number of processes.
const RANKS: [&str; 3] = ["PMIX_RANK", "PMI_RANK", "PALS_RANKID"];

/// The traces of an MPI launcher in the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The variable that was found.
    pub variable: &'static str,
    /// Its value.
    pub value: String,
    /// The number of processes. `None`: the launcher does not set it.
    pub size: Option<usize>,
}

/// Looks for the variables of MPI launchers with `variable`. Returns `None` where none of them is set.
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
    fn launched_processes_differ_from_programs_started_by_hand() {
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
