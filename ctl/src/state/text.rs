//! Values that a state has as texts: those that read as they are written.

/// Lets serde (`try_from = "String", into = "String"`) go by `FromStr`, with this error, and `Display`.
macro_rules! as_text {
    ($($Type:ty: $Error:ty;)*) => {
        $(
            impl TryFrom<String> for $Type {
                type Error = $Error;

                fn try_from(text: String) -> Result<Self, Self::Error> {
                    text.parse()
                }
            }

            impl From<$Type> for String {
                fn from(value: $Type) -> Self {
                    value.to_string()
                }
            }
        )*
    };
}

as_text! {
    super::BackendAddress: super::BackendAddressError;
    super::DnsName: super::BackendAddressError;
    super::FileMode: super::FileModeError;
    super::Fingerprint: super::FingerprintError;
    super::RateKey: super::RateKeyError;
    super::StatusRange: super::StatusRangeError;
}
