#include "isa_scalar.h"
#include "instance.h"

namespace dsv2 {

const Backend* scalar_backend() {
  static const Instance<Scalar> instance("scalar");
  return true ? &instance : nullptr;
}

}  // namespace dsv2
