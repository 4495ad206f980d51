#include "governor.hpp"

#include <iterator>

namespace {
constexpr Governor::Level levels[] = {{1.0F, 32}, {0.5F, 24}, {0.25F, 16}, {0.1F, 8}};
constexpr double near = 0.9;       // share of the time from which the next answer is shortened
constexpr double spare = 0.6;      // share of the time below which there is time to spare
constexpr unsigned calm_before = 8; // answers with time to spare before the next one may be longer
} // namespace

Governor::Level Governor::level() const { return levels[step_]; }

void Governor::saw(bool is_whole, double share) {
  if (!is_whole || share > near) {
    calm_ = 0;
    if (step_ + 1 < std::size(levels)) ++step_;
    return;
  }
  calm_ = share < spare ? calm_ + 1 : 0;
  if (calm_ >= calm_before && step_ > 0) {
    calm_ = 0;
    --step_;
  }
}
