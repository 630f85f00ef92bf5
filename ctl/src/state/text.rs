//! Values that a state has as texts: those that read as they are written, and what is a token.

/// Whether a text is a token (RFC 9110 section 5.6.2): the name of a field, a method, a scheme.
pub fn is_token(text: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_letter)
}

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
