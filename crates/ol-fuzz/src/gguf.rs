//! GGUF files.

use ol_model::{Gguf, Lora, Model, Pool, WeightFormat};

use crate::model::{adapter_base, same_adapter};

/// A GGUF file.
///
/// # Panics
/// If a model that is read has another configuration or hash when it is read again.
pub fn gguf(bytes: &[u8]) {
    let open = || Gguf::from_bytes("fuzz.gguf", bytes.to_vec());
    let Ok(file) = open() else { return };
    // Metadata and tensors give values or errors.
    let _ = file.tokenizer();
    for tensor in file.tensors() {
        let _ = file.read_f32(tensor);
    }
    let pool = Pool::new(1);
    let load = |file: &Gguf| Model::from_gguf(&pool, file, WeightFormat::Stored);
    let Ok(model) = load(&file) else { return };
    let again = load(&open().expect("it was opened before")).expect("it was read before");
    assert_eq!(model.config(), again.config(), "another configuration");
    assert_eq!(model.hash(), again.hash(), "another hash");
}

/// An adapter as a GGUF file, for [`adapter_base`].
///
/// # Panics
/// If an adapter that is read is another one as a PEFT directory.
pub fn gguf_adapter(bytes: &[u8]) {
    let Ok(file) = Gguf::from_bytes("fuzz.gguf", bytes.to_vec()) else {
        return;
    };
    if let Ok(lora) = Lora::from_gguf(&file, &adapter_base()) {
        same_adapter(&lora);
    }
}
