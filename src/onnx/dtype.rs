//! Element types of ONNX tensors.

use std::fmt;

/// `TensorProto.DataType` of `onnx.proto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
#[allow(missing_docs)]
pub enum DataType {
    F32 = 1,
    U8 = 2,
    I8 = 3,
    U16 = 4,
    I16 = 5,
    I32 = 6,
    I64 = 7,
    String = 8,
    Bool = 9,
    F16 = 10,
    F64 = 11,
    U32 = 12,
    U64 = 13,
    Bf16 = 16,
    F8E4M3 = 17,
    F8E5M2 = 19,
    U4 = 21,
    I4 = 22,
}

use DataType::*;

const TABLE: [(DataType, &str, u32); 18] = [
    (F32, "f32", 32),
    (U8, "u8", 8),
    (I8, "i8", 8),
    (U16, "u16", 16),
    (I16, "i16", 16),
    (I32, "i32", 32),
    (I64, "i64", 64),
    (String, "string", 0),
    (Bool, "bool", 8),
    (F16, "f16", 16),
    (F64, "f64", 64),
    (U32, "u32", 32),
    (U64, "u64", 64),
    (Bf16, "bf16", 16),
    (F8E4M3, "f8e4m3", 8),
    (F8E5M2, "f8e5m2", 8),
    (U4, "u4", 4),
    (I4, "i4", 4),
];

impl DataType {
    /// The type with this code, if it is one of those we know.
    pub fn from_code(code: i32) -> Option<Self> {
        TABLE
            .iter()
            .map(|row| row.0)
            .find(|&dtype| dtype as i32 == code)
    }

    /// Size of one element in bits, 0 for strings.
    pub fn bits(self) -> u32 {
        self.row().2
    }

    /// Bytes of `len` elements; packed types are rounded up to whole bytes.
    pub fn bytes_for(self, len: u64) -> Option<u64> {
        Some(len.checked_mul(u64::from(self.bits()))?.div_ceil(8))
    }

    /// True for types whose values have a fraction.
    pub fn is_float(self) -> bool {
        matches!(self, F32 | F16 | F64 | Bf16 | F8E4M3 | F8E5M2)
    }

    fn row(self) -> &'static (DataType, &'static str, u32) {
        // Every variant stands in TABLE, which the test below asserts.
        TABLE.iter().find(|row| row.0 == self).unwrap_or(&TABLE[0])
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_every_code_once() {
        for code in -1..64 {
            if let Some(dtype) = DataType::from_code(code) {
                assert_eq!(dtype as i32, code);
                assert_eq!(dtype.row().0, dtype);
            }
        }
        assert_eq!(DataType::F16.to_string(), "f16");
        assert_eq!(DataType::I4.bytes_for(3), Some(2));
        assert_eq!(DataType::F64.bytes_for(u64::MAX), None);
    }
}
