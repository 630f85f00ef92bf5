//! Responses of kakehi's own as operators write them, ready to be filled in.

use std::rc::Rc;

use kakehi_ctl::{
    state::{Answer, Answers},
    template::Template,
};

/// Those of a listener or a cluster, by status.
#[derive(Debug, PartialEq, Eq)]
pub struct Templates(Vec<Rc<Template>>);

impl Templates {
    /// Those of a configuration, which has checked them; `None` if there are none.
    pub fn compile(answers: &Answers) -> Option<Rc<Templates>> {
        if answers.is_empty() {
            return None;
        }
        Some(Rc::new(Templates(answers.0.values().filter_map(template).collect())))
    }

    /// The one for this status.
    pub fn get(&self, status: u16) -> Option<&Rc<Template>> {
        self.0.iter().find(|template| template.status() == status)
    }
}

/// The one that a text is.
pub fn template(answer: &Answer) -> Option<Rc<Template>> {
    Template::parse(&answer.text).ok().map(|(template, _)| Rc::new(template))
}
