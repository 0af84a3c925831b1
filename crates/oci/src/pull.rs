pub struct Puller;
