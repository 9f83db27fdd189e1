//! Files of a run: read where they are regular, written beside their destination, moved there together, and never one in
//! the place of another.

mod declared;

mod identity;

mod outputs;

mod read;

mod temporary;

pub use declared::RunFiles;
pub(crate) use identity::parent;
pub(crate) use outputs::{Outputs, check_output_folder, is_same_file, unwritable, write_file};
pub(crate) use read::{map, open, read_text};
pub(crate) use temporary::{NewFolder, TemporaryFile, TemporaryFolder};
pub use temporary::{Ending, end};
