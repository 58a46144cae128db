//! The one table of what each protocol is told about each code.

use tonic::Code;

use super::EngineError;

/// What each protocol is told about one kind of error.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    /// The stable code.
    pub(super) code: &'static str,
    /// Status of an HTTP response.
    pub(super) http: u16,
    /// Status code of a gRPC response.
    pub(super) grpc: Code,
    /// Class and subclass as in the SQL standard and PostgreSQL.
    pub(super) sqlstate: &'static str,
    /// Whether the same request may succeed later.
    pub(super) retryable: bool,
}

/// Of an error whose code is in no table: nothing is promised.
const UNKNOWN: Facts =
    Facts { code: "FS-RUN-4", http: 500, grpc: Code::Unknown, sqlstate: "XX000", retryable: false };

macro_rules! facts {
    (
        own { $($variant:ident $code:literal $http:literal $grpc:ident $sqlstate:literal $again:ident,)* }
        wrapped { $($inner:literal $inner_http:literal $inner_grpc:ident $inner_sqlstate:literal $inner_again:ident,)* }
    ) => {
        const TABLE: &[Facts] = &[
            $(Facts { code: $code, http: $http, grpc: Code::$grpc, sqlstate: $sqlstate, retryable: $again },)*
            $(Facts { code: $inner, http: $inner_http, grpc: Code::$inner_grpc, sqlstate: $inner_sqlstate, retryable: $inner_again },)*
        ];

        impl EngineError {
            /// The row of the table for this error.
            pub(super) fn facts(&self) -> Facts {
                let code = match self {
                    $(Self::$variant { .. } => $code,)*
                    Self::Setting(error) => error.code(),
                    Self::Store(error) => error.code(),
                    Self::Spill(error) => error.code(),
                    Self::Function(error) => error.code(),
                    Self::Loop(error) => error.code(),
                    Self::Announcement(error) => error.code(),
                    Self::Control(error) => error.code(),
                    Self::Cluster(error) => error.code(),
                    Self::Provider(error) => error.code(),
                    Self::Relayed { code, .. } => code,
                };
                TABLE.iter().find(|facts| facts.code == code).copied().unwrap_or(UNKNOWN)
            }
        }
    };
}

facts! {
    own {
        // variant        code           http  gRPC               SQLSTATE  retryable
        Syntax            "FS-SQL-1"     400   InvalidArgument    "42601"   false,
        UnknownTable      "FS-SQL-2"     404   NotFound           "42P01"   false,
        UnknownColumn     "FS-SQL-3"     400   InvalidArgument    "42703"   false,
        UnknownFunction   "FS-SQL-4"     400   InvalidArgument    "42883"   false,
        Type              "FS-SQL-5"     400   InvalidArgument    "42804"   false,
        TooComplex        "FS-SQL-6"     400   InvalidArgument    "54001"   false,
        NotOneStatement   "FS-SQL-7"     400   InvalidArgument    "42601"   false,
        Invalid           "FS-SQL-8"     400   InvalidArgument    "42000"   false,
        NotSupported      "FS-SQL-9"     501   Unimplemented      "0A000"   false,
        Parameter         "FS-SQL-10"    400   InvalidArgument    "22023"   false,
        ParameterCount    "FS-SQL-11"    400   InvalidArgument    "07001"   false,
        TableExists       "FS-SQL-12"    409   AlreadyExists      "42P07"   false,
        ReadOnly          "FS-SQL-13"    403   FailedPrecondition "25006"   false,
        UnknownStatement  "FS-SQL-14"    404   NotFound           "26000"   false,
        Value             "FS-SQL-15"    422   InvalidArgument    "22000"   false,
        Timeout           "FS-RUN-1"     504   DeadlineExceeded   "57014"   true,
        Cancelled         "FS-RUN-2"     499   Cancelled          "57014"   false,
        Memory            "FS-RUN-3"     503   ResourceExhausted  "53200"   true,
        Execution         "FS-RUN-4"     500   Unknown            "XX000"   false,
        Defect            "FS-RUN-5"     500   Internal           "XX000"   false,
        NodeLost          "FS-RUN-6"     503   Unavailable        "08006"   true,
        ShuttingDown      "FS-RUN-7"     503   Unavailable        "57P01"   true,
        TooMany           "FS-RUN-8"     429   ResourceExhausted  "53400"   true,
        AnswerTooLarge    "FS-RUN-9"     422   OutOfRange         "54000"   false,
        Missing           "FS-IO-1"      404   NotFound           "58P01"   false,
        Damaged           "FS-IO-2"      500   DataLoss           "XX001"   false,
        Unwritable        "FS-IO-3"      500   PermissionDenied   "42501"   false,
        Io                "FS-IO-4"      503   Unavailable        "58030"   true,
        PortInUse         "FS-NET-1"     500   AlreadyExists      "55006"   false,
        Address           "FS-NET-2"     500   Unavailable        "08001"   false,
        RequestTooLarge   "FS-NET-3"     413   OutOfRange         "54000"   false,
        Request           "FS-NET-4"     400   InvalidArgument    "08P01"   false,
        NotAcceptable     "FS-NET-5"     406   InvalidArgument    "08P01"   false,
        Telemetry         "FS-NET-6"     500   Unavailable        "08001"   false,
    }
    wrapped {
        // code           http  gRPC               SQLSTATE  retryable
        "FS-CONFIG-1"     400   InvalidArgument    "22023"   false,
        "FS-CONFIG-2"     400   InvalidArgument    "22023"   false,
        "FS-CONFIG-3"     400   InvalidArgument    "22023"   false,
        "FS-CONFIG-4"     400   InvalidArgument    "22023"   false,
        "FS-CONFIG-5"     400   InvalidArgument    "F0000"   false,
        "FS-CONFIG-6"     400   InvalidArgument    "22023"   false,
        "FS-STORE-1"      409   Aborted            "40001"   true,
        "FS-STORE-2"      409   FailedPrecondition "40001"   false,
        "FS-STORE-3"      503   Unavailable        "58030"   true,
        "FS-STORE-4"      500   DataLoss           "XX001"   false,
        "FS-STORE-5"      404   NotFound           "58P01"   false,
        "FS-STORE-6"      409   Aborted            "40001"   true,
        "FS-STORE-7"      400   InvalidArgument    "42804"   false,
        "FS-STORE-8"      501   Unimplemented      "0A000"   false,
        "FS-STORE-9"      400   InvalidArgument    "42804"   false,
        "FS-STORE-10"     403   FailedPrecondition "25006"   false,
        "FS-STORE-11"     500   PermissionDenied   "42501"   false,
        "FS-STORE-12"     504   DeadlineExceeded   "58030"   true,
        "FS-STORE-13"     500   Unknown            "40003"   false,
        "FS-STORE-14"     409   AlreadyExists      "42P07"   false,
        "FS-STORE-15"     404   NotFound           "42P01"   false,
        "FS-STORE-16"     500   Internal           "XX000"   false,
        "FS-STORE-17"     500   Internal           "XX000"   false,
        "FS-STORE-18"     400   InvalidArgument    "22023"   false,
        "FS-STORE-19"     500   DataLoss           "XX001"   false,
        "FS-STORE-20"     422   InvalidArgument    "22000"   false,
        "FS-STORE-21"     500   Internal           "58000"   false,
        "FS-STORE-22"     500   Unknown            "40003"   false,
        "FS-SPILL-1"      400   InvalidArgument    "22023"   false,
        "FS-SPILL-2"      503   Unavailable        "58030"   true,
        "FS-LOOP-1"       500   Internal           "58000"   false,
        "FS-LOOP-2"       503   Unavailable        "57P03"   true,
        "FS-LOOP-3"       500   DeadlineExceeded   "58000"   false,
        "FS-LOOP-4"       500   Unavailable        "58030"   true,
        "FS-LOOP-5"       500   Unavailable        "58030"   true,
        "FS-CONTROL-1"    400   InvalidArgument    "22023"   false,
        "FS-CONTROL-2"    404   NotFound           "02000"   false,
        "FS-CONTROL-3"    409   FailedPrecondition "55000"   false,
        "FS-CONTROL-4"    409   FailedPrecondition "55000"   false,
        "FS-CONTROL-5"    409   FailedPrecondition "55000"   false,
        "FS-CONTROL-6"    409   Aborted            "55006"   true,
        "FS-CONTROL-7"    409   FailedPrecondition "55000"   false,
        "FS-CONTROL-8"    409   FailedPrecondition "55000"   false,
        "FS-CONTROL-9"    409   FailedPrecondition "55000"   false,
        "FS-ANNOUNCE-1"   400   InvalidArgument    "22003"   false,
        "FS-ANNOUNCE-2"   400   InvalidArgument    "22007"   false,
        "FS-ANNOUNCE-3"   400   InvalidArgument    "22007"   false,
        "FS-ANNOUNCE-4"   429   ResourceExhausted  "53400"   true,
        "FS-ANNOUNCE-5"   500   DataLoss           "XX001"   false,
        "FS-NODE-1"       503   Unavailable        "58000"   true,
        "FS-NODE-2"       503   Unavailable        "08006"   true,
        "FS-CLUSTER-1"    503   Unavailable        "08006"   true,
        "FS-CLUSTER-2"    503   Unavailable        "08006"   true,
        "FS-CLUSTER-3"    404   NotFound           "42704"   false,
        "FS-CLUSTER-4"    404   NotFound           "42704"   false,
        "FS-CLUSTER-5"    409   FailedPrecondition "55000"   false,
        "FS-CLUSTER-6"    404   NotFound           "42704"   false,
        "FS-CLUSTER-7"    409   FailedPrecondition "55000"   false,
        "FS-CLUSTER-8"    503   Unavailable        "08006"   true,
        "FS-CLUSTER-9"    409   AlreadyExists      "42710"   false,
        "FS-CLUSTER-10"   503   Unavailable        "08001"   true,
        "FS-CLUSTER-11"   409   Aborted            "40001"   true,
        "FS-CLUSTER-12"   503   ResourceExhausted  "53400"   true,
        "FS-CLUSTER-13"   409   Aborted            "40001"   true,
        "FS-PROVIDER-1"   409   FailedPrecondition "55000"   false,
        "FS-PROVIDER-2"   500   Unavailable        "58030"   false,
        "FS-PROVIDER-3"   503   Unavailable        "58030"   true,
        "FS-PROVIDER-4"   503   Unavailable        "08006"   true,
        "FS-PROVIDER-5"   500   Internal           "XX000"   false,
        "FS-PROVIDER-6"   500   FailedPrecondition "08001"   false,
        "FS-PROVIDER-7"   503   Unauthenticated    "28000"   false,
        "FS-PROVIDER-8"   503   PermissionDenied   "42501"   false,
        "FS-PROVIDER-9"   503   NotFound           "42704"   false,
        "FS-PROVIDER-10"  409   Aborted            "40001"   true,
        "FS-PROVIDER-11"  503   Unavailable        "08006"   true,
        "FS-PROVIDER-12"  503   Unavailable        "08001"   true,
        "FS-PROVIDER-13"  503   Unavailable        "58030"   true,
        "FS-COMPUTE-1"    500   Internal           "38000"   false,
        "FS-COMPUTE-2"    404   NotFound           "42P01"   false,
        "FS-COMPUTE-3"    500   Internal           "38000"   false,
        "FS-PARTITION-1"  400   InvalidArgument    "42703"   false,
        "FS-PARTITION-2"  400   InvalidArgument    "22023"   false,
        "FS-PARTITION-3"  400   InvalidArgument    "42804"   false,
        "FS-PARTITION-4"  400   InvalidArgument    "22023"   false,
        "FS-PARTITION-5"  500   Internal           "22000"   false,
        "FS-PARTITION-6"  500   Internal           "22000"   false,
        "FS-PARTITION-7"  404   NotFound           "42704"   false,
        "FS-PARTITION-8"  400   InvalidArgument    "22023"   false,
        "FS-PARTITION-9"  400   InvalidArgument    "22023"   false,
        "FS-PARTITION-10" 400   InvalidArgument    "42809"   false,
        "FS-PARTITION-11" 500   DataLoss           "XX001"   false,
        "FS-FN-1"         500   Internal           "38000"   false,
        "FS-FN-2"         500   Internal           "38000"   false,
        "FS-FN-3"         500   Internal           "38000"   false,
        "FS-FN-4"         500   Internal           "38000"   false,
        "FS-FN-5"         500   ResourceExhausted  "38000"   false,
        "FS-FN-6"         422   InvalidArgument    "22023"   false,
        "FS-FN-7"         400   InvalidArgument    "42883"   false,
        "FS-FN-8"         409   Aborted            "40001"   true,
        "FS-FN-9"         400   InvalidArgument    "42P13"   false,
        "FS-FN-10"        500   FailedPrecondition "58P01"   false,
        "FS-FN-11"        500   FailedPrecondition "58000"   false,
        "FS-FN-12"        503   Unavailable        "38000"   true,
        "FS-FN-13"        499   Cancelled          "57014"   false,
        "FS-FN-14"        503   ResourceExhausted  "53400"   true,
    }
}

/// The table's own copy of `code`, if it has it.
pub(super) fn known_code(code: &str) -> Option<&'static str> {
    TABLE.iter().map(|facts| facts.code).find(|known| *known == code)
}

#[cfg(test)]
mod tests {
    use super::TABLE;

    #[test]
    fn every_code_that_the_parts_below_can_raise_stands_in_the_table() {
        let sources = [
            "actors/policy/src/config/section.rs",
            "actors/policy/src/forecast/announced.rs",
            "actors/src/announcements.rs",
            "actors/src/loop_handle.rs",
            "actors/src/node/supervisor.rs",
            "actors/src/partition/compute.rs",
            "actors/src/partitioning.rs",
            "engine/src/cluster/members/error.rs",
            "engine/src/cluster/place.rs",
            "actors/src/spill/bucket.rs",
            "actors/src/store/error.rs",
            "udfs/src/error.rs",
        ];
        for source in sources {
            let path = format!("{}/../{source}", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(&path).unwrap();
            let codes: Vec<_> = text.split('"').filter(|word| word.starts_with("FS-")).collect();
            assert!(!codes.is_empty(), "{path}");
            for code in codes {
                assert_eq!(super::known_code(code), Some(code), "{path}");
            }
        }
    }

    #[test]
    fn every_code_stands_once_in_the_table_and_tells_every_protocol_of_an_error() {
        for (position, facts) in TABLE.iter().enumerate() {
            assert!(TABLE[..position].iter().all(|other| other.code != facts.code), "{facts:?}");
            assert!((400..600).contains(&facts.http), "{facts:?}");
            assert_ne!(facts.grpc, tonic::Code::Ok);
            assert_eq!(facts.sqlstate.len(), 5, "{facts:?}");
        }
    }
}
