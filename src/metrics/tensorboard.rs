//! TensorBoard event files.
//!
//! An event file is a sequence of records, in the format of TensorFlow's `record_writer.h`: the length of the data (8
//! bytes, little-endian), a checksum of these 8 bytes, the data, a checksum of the data. The checksum is CRC-32C,
//! rotated and offset. The data is an `Event` message. The first event of a file holds the version of the format.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use prost::Message;

use super::generated::event::What;
use super::generated::session_log::SessionStatus;
use super::generated::summary::{self, value};
use super::generated::{Event, SessionLog, Summary};
use crate::error::Error;
use crate::files::Appended;

/// The format version, which the first event of every file holds.
const VERSION: &str = "brain.Event:2";

/// The prefix of file names by which TensorBoard recognises an event file.
const PREFIX: &str = "events.out.tfevents.";

/// A PNG file in memory.
#[derive(Clone, Debug)]
pub struct Picture {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Channels: 1 for grey, 3 for colour.
    pub channels: u32,
    /// The contents of the PNG file.
    /// The bytes of the file.
    pub png: Bytes,
}

/// An event file that TensorBoard shows: `tensorboard --logdir FOLDER`.
///
/// A folder holds the files of one run: one file each time the run was started or resumed.
#[derive(Debug)]
pub struct EventFile {
    file: Appended,
}

impl EventFile {
    /// Creates a new file in a folder that exists. For a run that is resumed, `done` is the last step whose events in
    /// earlier files are valid: TensorBoard discards their events of later steps. `None`: a run from the start.
    ///
    /// # Errors
    /// The folder can't be read or written.
    pub fn create(folder: &Path, done: Option<u64>) -> Result<Self, Error> {
        let mut file = Self { file: Appended::open(&place(folder)?)? };
        file.add(now(), 0, What::FileVersion(VERSION.to_owned()))?;
        if let Some(done) = done {
            let start = SessionLog { status: SessionStatus::Start.into() };
            file.add(now(), done + 1, What::SessionLog(start))?;
        }
        Ok(file)
    }

    /// Writes scalars of a step, each a point on the curve of its tag. TensorBoard groups tags by prefix: `loss/train`
    /// is shown next to `loss/held-out`.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f32)]) -> Result<(), Error> {
        self.add(now(), step, scalars(values))
    }

    /// Writes an image of a step.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn picture(&mut self, step: u64, tag: &str, picture: &Picture) -> Result<(), Error> {
        self.add(now(), step, image(tag, picture))
    }

    fn add(&mut self, time: f64, step: u64, what: What) -> Result<(), Error> {
        self.file.write(&record(time, step, what))
    }
}

fn now() -> f64 {
    // A system clock before 1970 is wrong: 0 will do.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// Returns a file name that sorts after those of all event files in the folder: TensorBoard reads the files in this
/// order.
fn place(folder: &Path) -> Result<PathBuf, Error> {
    let unreadable = |error: std::io::Error| Error::unreadable(folder, format!("can't be read: {error}"));
    let mut seconds = now() as u64;
    for entry in folder.read_dir().map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        let name = name.to_string_lossy();
        let of = name.strip_prefix(PREFIX).and_then(|rest| rest.split('.').next()?.parse::<u64>().ok());
        if let Some(of) = of {
            seconds = seconds.max(of.saturating_add(1));
        }
    }
    Ok(folder.join(format!("{PREFIX}{seconds:010}.{}.{}.0", env!("CARGO_PKG_NAME"), std::process::id())))
}

fn scalars(values: &[(&str, f32)]) -> What {
    let value = |(tag, value): &(&str, f32)| summary::Value {
        tag: (*tag).to_owned(),
        value: Some(value::Value::SimpleValue(*value)),
    };
    What::Summary(Summary { value: values.iter().map(value).collect() })
}

fn image(tag: &str, picture: &Picture) -> What {
    let of = |size: u32| i32::try_from(size).unwrap_or(i32::MAX);
    let image = summary::Image {
        height: of(picture.height),
        width: of(picture.width),
        colorspace: of(picture.channels),
        encoded_image_string: picture.png.clone(),
    };
    let value = summary::Value { tag: tag.to_owned(), value: Some(value::Value::Image(image)) };
    What::Summary(Summary { value: vec![value] })
}

/// Encodes an event as a record of the file.
fn record(wall_time: f64, step: u64, what: What) -> Vec<u8> {
    let step = i64::try_from(step).unwrap_or(i64::MAX);
    let data = Event { wall_time, step, what: Some(what) }.encode_to_vec();
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &checksum(&length), &data, &checksum(&data)].concat()
}

/// Returns the checksum of a record: CRC-32C, rotated right by 15 bits, plus a constant. This way the checksum of data
/// that contains checksums differs from the checksums inside it.
fn checksum(bytes: &[u8]) -> [u8; 4] {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// Computes CRC-32C (Castagnoli), bits reflected.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| (crc >> 8) ^ TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize])
}

/// The effect of each byte on the checksum.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u32, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// The same events as written by TensorBoard's writer: `scripts/make_event_fixture.py`.
    const REFERENCE: &[u8] = include_bytes!("../../fixtures/events/reference.tfevents");
    const PNG: &[u8] = include_bytes!("../../fixtures/events/pixel.png");

    fn picture() -> Picture {
        Picture { width: 1, height: 1, channels: 3, png: Bytes::from_static(PNG) }
    }

    #[test]
    fn checksums_match_rfc_3720_and_the_crc_catalogue() {
        // RFC 3720, B.4: 32 bytes of zeros. Then the check value of the CRC catalogue.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn records_equal_those_of_tensorboards_writer() {
        let start = SessionLog { status: SessionStatus::Start.into() };
        let found = [
            record(1000.5, 0, What::FileVersion(VERSION.to_owned())),
            record(1001.0, 0, scalars(&[("loss/train", 0.0), ("rate", -1.5)])),
            record(1002.0, 300, scalars(&[("loss/train", 0.25)])),
            record(1003.0, 300, image("samples", &picture())),
            record(1004.0, 200, What::SessionLog(start)),
            record(1005.0, 200, scalars(&[("loss/train", 0.125)])),
        ];
        assert_eq!(found.concat(), REFERENCE);
    }

    #[test]
    fn a_resumed_run_writes_a_later_file_that_voids_steps() {
        let folder = tempfile::tempdir().unwrap();
        let names = || {
            let entries = folder.path().read_dir().unwrap().map(|entry| entry.unwrap().path());
            let mut names: Vec<PathBuf> = entries.collect();
            names.sort();
            names
        };
        let mut first = EventFile::create(folder.path(), None).unwrap();
        first.scalars(7, &[("loss", 1.0)]).unwrap();
        let [before] = names().try_into().unwrap();
        let mut second = EventFile::create(folder.path(), Some(4)).unwrap();
        second.picture(5, "samples", &picture()).unwrap();
        let [same, after] = names().try_into().unwrap();
        assert_eq!(same, before);
        let bytes = std::fs::read(after).unwrap();
        let mut rest = bytes.as_slice();
        let mut events = Vec::new();
        while !rest.is_empty() {
            let data = usize::try_from(u64::from_le_bytes(rest[..8].try_into().unwrap())).unwrap();
            events.push(Event::decode(&rest[12..12 + data]).unwrap());
            rest = &rest[16 + data..];
        }
        assert_eq!(events.iter().map(|event| event.step).collect::<Vec<i64>>(), [0, 5, 5]);
        assert!(matches!(events[1].what, Some(What::SessionLog(_))));
        assert!(EventFile::create(&folder.path().join("none"), None).is_err());
    }
}
