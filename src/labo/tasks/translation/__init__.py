"""Machine translation: sentences in two languages, their vocabulary, batches by tokens, and the tasks over them."""
