//! Chainable setters of options.

/// Makes setters inside an `impl` block: `with_force: force = bool` sets the field `force` to a
/// `bool`, `with_kernel: kernel = Some(Kernel)` wraps the argument.
macro_rules! setters {
    () => {};
    ($name:ident: $field:ident = Some($of:ty), $($rest:tt)*) => {
        #[doc = concat!("Sets [`Self::", stringify!($field), "`].")]
        #[must_use]
        pub fn $name(mut self, $field: $of) -> Self {
            self.$field = Some($field);
            self
        }
        $crate::setters::setters! { $($rest)* }
    };
    ($name:ident: $field:ident = $of:ty, $($rest:tt)*) => {
        #[doc = concat!("Sets [`Self::", stringify!($field), "`].")]
        #[must_use]
        pub fn $name(mut self, $field: $of) -> Self {
            self.$field = $field;
            self
        }
        $crate::setters::setters! { $($rest)* }
    };
}

pub(crate) use setters;
