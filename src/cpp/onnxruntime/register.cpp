// The one function that ONNX Runtime looks for in a library of operators.
#include <map>
#include <memory>
#include <mutex>

#include "onnxruntime/operators.h"

namespace mxfp4moe::onnx {
namespace {

// The operators, for one copy of ONNX Runtime in the process.
class Domain {
 public:
  explicit Domain(const OrtApi& api) {
    check_host(api, api.CreateCustomOpDomain("mxfp4moe", &domain_));
    add<FusedExperts>(api);
    add<Linears>(api);
    add<Layers>(api);
    add<QuantizeMxfp4>(api);
  }

  OrtCustomOpDomain* get() const { return domain_; }

 private:
  template <class Kernel>
  void add(const OrtApi& api) {
    for (const auto type : {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
                            ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16}) {
      auto added = std::make_shared<Operator<Kernel>>(api, type);
      check_host(api, api.CustomOpDomain_Add(domain_, added.get()));
      operators_.push_back(std::move(added));
    }
  }

  OrtCustomOpDomain* domain_ = nullptr;
  std::vector<std::shared_ptr<void>> operators_;
};

// They live for as long as the process: nothing tells when the last session has ended.
OrtCustomOpDomain* domain_of(const OrtApi& api) {
  static std::mutex mutex;
  static auto& domains = *new std::map<const OrtApi*, std::unique_ptr<Domain>>;
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<Domain>& domain = domains[&api];
  if (domain == nullptr) domain = std::make_unique<Domain>(api);
  return domain->get();
}

}  // namespace
}  // namespace mxfp4moe::onnx

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* base) {
  using namespace mxfp4moe::onnx;
  const OrtApi* const api = base->GetApi(kApiVersion);
  const OrtApi& oldest = *base->GetApi(1);  // every runtime has this version, which can make a status
  return guarded(oldest, "RegisterCustomOps", [&] {
    if (api == nullptr) {
      invalid("onnxruntime", "version 1." + std::to_string(kApiVersion) + " or newer", base->GetVersionString());
    }
    check_host(*api, api->AddCustomOpDomain(options, domain_of(*api)));
  });
}
