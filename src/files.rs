//! The files of a run. Inputs must be regular files. Outputs are written to temporary files next to their destination,
//! and moved there together. No output replaces an input or another output.

mod appended;

mod declared;

mod folder;

mod identity;

mod outputs;

mod read;

mod temporary;

pub(crate) use appended::Appended;
pub use declared::RunFiles;
pub(crate) use folder::OutputFolder;
pub(crate) use identity::parent;
pub use outputs::write_file;
pub(crate) use outputs::{Outputs, is_same_file, unwritable};
pub(crate) use read::{map, open, read_text};
pub use temporary::{Ending, end};
pub(crate) use temporary::{NewFolder, TemporaryFile, TemporaryFolder};
